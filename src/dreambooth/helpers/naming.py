"""How a run, its base and its libraries are named where others read it: without paths of here."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreambooth.job import Job

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def last_part(text: str) -> str:
    """Return the last part of an absolute path, and any other text as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return kind(text).name
    return text


def base_name(job: Job) -> str:
    """Return the base model's name: a hub id or `builtin:NAME` as the job has it, of a path its
    last part, or the kind of a model that has no `source`."""
    return last_part(str(getattr(job.model, "source", ""))) or job.model.kind


def hub_id(job: Job) -> str | None:
    """Return the base's hub id (`org/name`); None for a file, a folder or a built-in."""
    source = str(getattr(job.model, "source", ""))
    return source if _HUB_ID.fullmatch(source) else None


def versions(*distributions: str) -> dict[str, str]:
    """Return the version of each installed distribution by its name; `absent` for the others."""
    return {name: _version(name) for name in distributions}


@cache
def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"
