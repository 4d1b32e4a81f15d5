"""Checkpoints: written beside and renamed, checksummed, verified on load, rotated afterwards."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dreambooth.errors import RunError
from dreambooth.files import new_folder, open_regular, read_object, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

_NAME = re.compile(r"step-(\d{6,12})\Z", re.ASCII)
_FILE = re.compile(r"[\w-]+\.(safetensors|json)\Z", re.ASCII)
CHECKSUMS, STATE = "checksums.json", "state.json"


class Damaged(Exception):
    """A checkpoint is not what was written; the message says in which way."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a checkpoint."""

    folder: Path
    tensors: dict[str, dict[str, Tensor]]
    numbers: dict[str, Any]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: Exception) -> str:
    """Return what the disk said, in one line."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0]


def step_of(path: Path) -> int | None:
    """Return the step a checkpoint's folder is named for; None for any other name."""
    match = _NAME.match(path.name)
    return int(match[1]) if match else None


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of the checkpoints below `folder`, oldest first."""
    entries = folder.iterdir() if folder.is_dir() else ()
    numbered = ((step_of(entry), entry) for entry in entries if entry.is_dir())
    return sorted((step, entry) for step, entry in numbered if step is not None)


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    numbers: Mapping[str, Any],
    rotate: Callable[[list[int]], Iterable[int]],
) -> Path:
    """Write the checkpoint of `step`, and when it is whole delete those `rotate` gives away.

    `rotate` gets the steps that are on disk (see `rotation.superseded`).
    """
    dest = folder / f"step-{step:06d}"
    try:
        with new_folder(dest) as beside:
            for stem, named in tensors.items():
                save_file(apart(named), beside / f"{stem}.safetensors")
            write_json(beside / STATE, numbers)
            sums = {f.name: file_hash(f) for f in sorted(beside.iterdir())}
            write_json(beside / CHECKSUMS, sums)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
        raise RunError(
            f"cannot write checkpoint {dest}: {reason(error)}",
            "the checkpoint before is intact: make room and run the same command again",
        ) from error
    there = dict(list_checkpoints(folder))
    for old in rotate(list(there)):
        there[old].unlink() if there[old].is_symlink() else shutil.rmtree(there[old])
    return dest


def apart(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, each with memory of its own: safetensors wants them so.

    An 8-bit optimizer's parameters share one table of what the codes stand for.
    """
    taken: set[int] = set()
    whole = {}
    for name, tensor in named.items():
        found = tensor.contiguous().cpu()
        place = found.untyped_storage().data_ptr()
        whole[name] = found.clone() if place in taken else found
        taken.add(place)
    return whole


def load(folder: Path, stems: Collection[str] | None = None) -> Checkpoint:
    """Read and verify one checkpoint; `Damaged` says what is wrong with it.

    `stems` names the tensor files to read (`trainable`, `ema`, `optimizer`), by default all.
    """
    try:
        sums = read_object(folder / CHECKSUMS)
    except (OSError, ValueError) as error:
        raise Damaged(f"{CHECKSUMS} cannot be read: {reason(error)}") from error
    try:
        for name, expected in sums.items():
            verify(folder, name, expected)
        there = {STATE, *(file.name for file in folder.glob("*.safetensors"))}
        for name in sorted(there - sums.keys()):
            raise Damaged(f"{CHECKSUMS} does not name {name}")
        tensors = {
            name.removesuffix(".safetensors"): load_file(folder / name)
            for name in sums
            if name.endswith(".safetensors")
            and (stems is None or name.removesuffix(".safetensors") in stems)
        }
        return Checkpoint(folder, tensors, read_object(folder / STATE))
    except (OSError, ValueError, SafetensorError) as error:
        raise Damaged(f"it cannot be read: {reason(error)}") from error


def verify(folder: Path, name: str, expected: object) -> None:
    """Raise `Damaged` unless a checkpoint's file is there as it was written."""
    # Names come from a file: neither they nor links may lead out of the folder.
    if not _FILE.match(name):
        raise Damaged(f"{CHECKSUMS} names {name!r}, which is no file of a checkpoint")
    if folder.is_symlink() or (folder / name).is_symlink():
        raise Damaged(f"{name} is a link, not the file that was written")
    if not (folder / name).is_file():
        raise Damaged(f"{name} is missing")
    if file_hash(folder / name) != expected:
        raise Damaged(f"{name} was changed or cut short")


def copy(source: Path, dest: Path) -> None:
    """Copy a checkpoint into the folder `dest` and verify it; `Damaged` where it is not whole.

    What `checksums.json` does not name stays behind, and no link is followed: the folder may be a
    stranger's, and the copy becomes this run's own.
    """
    try:
        for name in (CHECKSUMS, *read_object(source / CHECKSUMS)):
            if not _FILE.match(name):
                raise Damaged(f"{CHECKSUMS} names {name!r}, which is no file of a checkpoint")
            with open_regular(source / name, follow=False) as file, (dest / name).open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
    except (OSError, ValueError) as error:
        raise Damaged(f"it cannot be copied: {reason(error)}") from error
    load(dest, ())


def newest(folder: Path, warn: Any) -> Checkpoint | None:
    """Return the newest whole checkpoint, naming each damaged one that was passed over."""
    found: list[Path | None] = [path for _, path in reversed(list_checkpoints(folder))]
    for path, before in pairwise([*found, None]):
        assert path is not None
        try:
            return load(path)
        except Damaged as error:
            instead = f"using {before.name}" if before else "no other is left: starting at step 0"
            warn(f"checkpoint {path.name} is damaged ({error}); {instead}")
    return None
