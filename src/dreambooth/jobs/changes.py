"""Whether a job is the one a run began with: read by this version, by content rather than paths."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from dreambooth.component import Section
from dreambooth.files import open_regular

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from dreambooth.job import Job

BLOCK = 1 << 20
BY_CONTENT = ("data", "model")
"""Sections whose content the manifest holds: pictures and weights (see `engine.manifest`)."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return dotted name -> (old, new) of what differs between two resolved jobs."""
    a, b = flatten(dict(old)), flatten(dict(new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def flatten(value: Any, at: str = "") -> dict[str, Any]:
    """Return dotted name -> value of a resolved job; a list is one value."""
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for key, inner in value.items():
            out |= flatten(inner, f"{at}.{key}" if at else key)
        return out
    return {at: value}


def as_now(saved: Mapping[str, Any], job: Job, base: Path) -> dict[str, Any]:
    """Return the resolved job of an earlier life as this version of the program writes it.

    An option that has come since then has its default. What this version does not take any more
    (a plugin that is gone, an option with other values) stays as it was written. `base` is a
    folder in which no relative path leads anywhere: hub ids stay hub ids.
    """
    now = job.resolved()
    try:
        return _read(saved, job, base)
    except ValidationError as error:
        strange = {str(found["loc"][0]) for found in error.errors() if found["loc"]}
    known = {name: now[name] if name in strange else v for name, v in saved.items() if name in now}
    try:
        read = _read(known, job, base)
    except ValidationError:
        absent = {k: f.default for k, f in type(job).model_fields.items() if k not in saved}
        sections = {k: v for k, v in absent.items() if isinstance(v, Section)}
        return {**{k: v.model_dump(mode="json") for k, v in sections.items()}, **saved}
    return {**read, **{name: v for name, v in saved.items() if name in strange or name not in now}}


def _read(saved: Mapping[str, Any], job: Job, base: Path) -> dict[str, Any]:
    # As in `loading.load_job`: JSON is the strict mode in which a text may fill a path.
    text = json.dumps(saved)
    return type(job).model_validate_json(text, strict=True, context={"base": base}).resolved()


def is_moved(name: str, job: Job, old: Any, inputs: Mapping[str, str]) -> bool:
    """Say whether an option names another place, where the same content lies or is looked for.

    `inputs` are the digests of what a run's paths held (see `digests`). Pictures and weights are
    compared once they have been read, with what the manifest says of them.
    """
    path = paths(job).get(name)
    if path is None or not isinstance(old, str) or not is_absolute(old):
        return False
    return name.split(".", 1)[0] in BY_CONTENT or (name in inputs and inputs[name] == digest(path))


def moved(changed: Collection[str]) -> set[str]:
    """Return the sections of which nothing but paths changed, whose content is to be compared."""
    return {name.split(".", 1)[0] for name in changed} & set(BY_CONTENT)


def digests(job: Job, besides: Collection[str]) -> dict[str, str]:
    """Return dotted name -> digest of what the paths of a job lead to, some sections excepted."""
    left_out = {*BY_CONTENT, *besides}
    wanted = {n: path for n, path in paths(job).items() if n.split(".", 1)[0] not in left_out}
    return {name: found for name, path in wanted.items() if (found := digest(path))}


def paths(job: Job) -> dict[str, Path]:
    """Return dotted name -> path of the options that are paths.

    A model names its files by a text, which may as well be a hub id or a built-in's name.
    """
    found: dict[str, Path] = {}
    rest: list[tuple[str, Any]] = [("", job)]
    while rest:
        at, value = rest.pop()
        if isinstance(value, BaseModel | dict):
            rest += [
                (f"{at}.{name}" if at else str(name), inner) for name, inner in dict(value).items()
            ]
        elif isinstance(value, Path) or (at.startswith("model.") and is_absolute(value)):
            found[at] = Path(value)
    return found


def digest(path: Path) -> str:
    """Hash a file, or the names and contents of a folder's files; empty where there is none."""
    found = hashlib.sha256()
    if path.is_dir():
        for file in _files(path):
            found.update(f"{file.relative_to(path).as_posix()}\n{digest(file)}\n".encode())
        return found.hexdigest()
    try:
        with open_regular(path) as opened:
            while block := opened.read(BLOCK):
                found.update(block)
            return found.hexdigest()
    except OSError:
        return ""


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


def is_absolute(value: Any) -> bool:
    """Say whether a text is an absolute path, of this system or another."""
    kinds = (PurePosixPath, PureWindowsPath)
    return isinstance(value, str) and any(kind(value).is_absolute() for kind in kinds)
