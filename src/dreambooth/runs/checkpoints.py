"""A checkpoint as files: its name, its checksums, whether it is whole. Never imports torch."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from typing import TYPE_CHECKING

from dreambooth.files import open_regular, place_of, read_object
from dreambooth.files.headers import read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_NAME = re.compile(r"step-(\d{6,12})\Z", re.ASCII)
_FILE = re.compile(r"[\w-]+\.(safetensors|json)\Z", re.ASCII)
CHECKSUMS, STATE = "checksums.json", "state.json"
_hashes: dict[tuple[int, ...], str] = {}


class Damaged(Exception):
    """A checkpoint is not what was written; the message says in which way."""


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_hash(path: Path) -> str:
    """Return `file_hash`, from memory while the file is the one that this process has hashed.

    A checkpoint of 10 GB is looked at by the preflight, and soon after read.
    """
    found = path.stat()
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if stamp not in _hashes:
        fresh = time.time_ns() - found.st_ctime_ns < 2_000_000_000
        if fresh:  # a change within the same tick of the clock would not be seen
            return file_hash(path)
        _hashes[stamp] = file_hash(path)
    return _hashes[stamp]


def reason(error: Exception) -> str:
    """Return what the disk said, in one line."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0]


def step_of(path: Path) -> int | None:
    """Return the step a checkpoint's folder is named for; None for any other name."""
    match = _NAME.match(path.name)
    return int(match[1]) if match else None


def name_of(step: int) -> str:
    """Return the name of the folder of a step's checkpoint."""
    return f"step-{step:06d}"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of the checkpoints below `folder`, oldest first."""
    entries = folder.iterdir() if folder.is_dir() else ()
    numbered = ((step_of(entry), entry) for entry in entries if entry.is_dir())
    return sorted((step, entry) for step, entry in numbered if step is not None)


def read_sums(folder: Path) -> dict[str, object]:
    """Return what a checkpoint's files must hash to, by name; `Damaged` where that cannot be read.

    The folder may be a stranger's: no name leads out of it.
    """
    try:
        sums: dict[str, object] = read_object(folder / CHECKSUMS)
    except (OSError, ValueError) as error:
        raise Damaged(f"{CHECKSUMS} cannot be read: {reason(error)}") from error
    for name in sums:
        if not _FILE.match(name):
            raise Damaged(f"{CHECKSUMS} names {name!r}, which is no file of a checkpoint")
    return sums


def verify_all(folder: Path) -> dict[str, object]:
    """Return a checkpoint's checksums; `Damaged` unless all its files are as they were written."""
    sums = read_sums(folder)
    try:
        for name, expected in sums.items():
            verify(folder, name, expected)
        there = {STATE, *(file.name for file in folder.glob("*.safetensors"))}
    except (OSError, ValueError) as error:
        raise Damaged(f"it cannot be read: {reason(error)}") from error
    for name in sorted(there - sums.keys()):
        raise Damaged(f"{CHECKSUMS} does not name {name}")
    for name in sums:
        _check_kind(folder, name)
    return sums


def _check_kind(folder: Path, name: str) -> None:
    """Raise `Damaged` for a file that is no such file, though its checksum is right.

    Somebody else may have written both, and a run that only finds out when it loads the tensors
    would begin elsewhere than its plan said.
    """
    try:
        if name.endswith(".safetensors"):
            read_header(folder / name)
        elif name == STATE:
            read_object(folder / name)
    except (OSError, ValueError) as error:
        raise Damaged(f"{name} cannot be read: {reason(error)}") from error


def copy(source: Path, dest: Path) -> None:
    """Copy a checkpoint into the folder `dest` and verify it; `Damaged` where it is not whole.

    What `checksums.json` does not name stays behind, and no link is followed: the folder may be a
    stranger's, and the copy becomes this run's own.
    """
    try:
        for name in (CHECKSUMS, *read_sums(source)):
            with open_regular(source / name, follow=False) as file, (dest / name).open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
    except (OSError, ValueError) as error:
        raise Damaged(f"it cannot be copied: {reason(error)}") from error
    verify_all(dest)


def verify(folder: Path, name: str, expected: object) -> None:
    """Raise `Damaged` unless a checkpoint's file is there as it was written."""
    if folder.is_symlink() or (folder / name).is_symlink():
        raise Damaged(f"{name} is a link, not the file that was written")
    if not (folder / name).is_file():
        raise Damaged(f"{name} is missing")
    if known_hash(folder / name) != expected:
        raise Damaged(f"{name} was changed or cut short")


def list_whole(folder: Path) -> list[tuple[int, Path]]:
    """Return what `list_checkpoints` will when `files.sweep` has been there.

    A checkpoint whose replacement was cut short still lies beside its place.
    """
    aside = {place_of(path): path for path in folder.glob(".step-*.old")}
    back = [(step_of(place), path) for place, path in aside.items() if place is not None]
    return sorted([*list_checkpoints(folder), *((s, path) for s, path in back if s is not None)])


def newest_whole(
    there: Sequence[tuple[int, Path]], warn: Callable[[str], None]
) -> tuple[int, Path | None]:
    """Return the newest whole one of some checkpoints, naming each damaged one passed over.

    Where there is none: step 0 and None.
    """
    for i in reversed(range(len(there))):
        step, path = there[i]
        try:
            verify_all(path)
        except Damaged as error:
            warn(passed_over(path, error, there[i - 1][1] if i else None))
        else:
            return step, path
    return 0, None


def passed_over(path: Path, error: Damaged, before: Path | None) -> str:
    """Say what is wrong with a checkpoint, and which one is taken instead."""
    instead = f"using {before.name}" if before else "no other is left: starting at step 0"
    return f"checkpoint {path.name} is damaged ({error}); {instead}"
