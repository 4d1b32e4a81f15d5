"""Files and folders written whole or not at all: beside their place, then renamed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.files.store import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def unwritable(path: Path) -> str:
    """Say why a folder cannot be made or written into; empty where it can.

    Permissions do not tell it all (quotas, read-only and remote disks): a folder is made and
    removed in what is there of the path.
    """
    there = path
    try:
        while not os.path.lexists(there):
            there = there.parent
        with tempfile.TemporaryDirectory(prefix=".dreambooth-", dir=there):
            pass
        with suppress(FileNotFoundError):
            os.lstat(path)  # a name too long is not there, and cannot be made either
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        return said if there == path else f"{there}: {said}"
    return ""


def sizes(folder: Path) -> dict[str, int]:
    """Return name -> bytes of every file below a folder, names relative to it, sorted."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def disk_is_full(error: OSError) -> bool:
    """Say whether a write failed for want of room (or of quota)."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


_BESIDE = re.compile(r"^\..+\.(\d+|[A-Za-z0-9-]*-\d+-[0-9a-f]{8})(\.\w+)?$")
"""Names of what is being written: `.stem.TOKEN.suffix` files, `.name.TOKEN.new` and `.old` folders;
once a token was the bare number of a process."""
_REPLACED = re.compile(r"^\.(.+)\.[^.]+\.old$")


def token() -> str:
    """Return what no other writer has in a temporary name.

    Machines and containers that share a folder may have equal process numbers.
    """
    import socket

    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:24]
    return f"{host}-{os.getpid()}-{os.urandom(4).hex()}"


def sweep(folder: Path, older_than: float = 0.0) -> None:
    """Remove what writers that were killed left half written below `folder`.

    A folder that was about to be replaced is put back where nothing has taken its place yet.
    Call it where no other writer can be at work, or give an age in seconds that none takes.
    """
    limit = time.time() - older_than
    for path in sorted(folder.rglob(".*")):
        # Where others write, or sweep too, anything may be gone a moment later.
        with suppress(FileNotFoundError):
            if not _BESIDE.match(path.name) or path.stat().st_mtime > limit:
                continue
            if path.is_dir() and not path.is_symlink():
                if not put_back(path):
                    shutil.rmtree(path)
            else:
                path.unlink()


def put_back(aside: Path) -> bool:
    """Give a folder that was about to be replaced its name back; say whether it was one."""
    if (place := place_of(aside)) is None:
        return False
    aside.rename(place)
    return True


def place_of(aside: Path) -> Path | None:
    """Return where a folder that was renamed to be replaced (`.name.TOKEN.old`) belongs.

    None for any other, and where something has taken its place.
    """
    name = _REPLACED.match(aside.name)
    if not name or not aside.is_dir() or os.path.lexists(aside.with_name(name[1])):
        return None
    return aside.with_name(name[1])


def sync(path: Path) -> None:
    """Bring a file's (or, where that can be done, a folder's) content to the disk."""
    folder = path.is_dir()
    if sys.platform == "win32":
        if folder:
            return
        handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))  # read only cannot be synced
    else:
        handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise  # some file systems sync files only
    finally:
        os.close(handle)


def rename(path: Path, dest: Path) -> None:
    """Rename a file, in the place of what is there, or a folder.

    Windows refuses while somebody has it open, as a virus scanner may for a moment.
    """
    move = path.rename if path.is_dir() else path.replace
    for seconds in (0.05, 0.1, 0.2, 0.4, 0.8) if sys.platform == "win32" else ():
        try:
            move(dest)
        except PermissionError:
            time.sleep(seconds)
        else:
            return
    move(dest)


def remove(path: Path) -> None:
    """Remove a folder (or a link to one) that is not needed any more, as far as that can be done.

    It loses its name first, so that no half of it is taken for the whole. What somebody has open
    and the system keeps for that is swept away later.
    """
    if path.is_symlink():
        path.unlink()
        return
    aside = path.with_name(f".{path.name}.{token()}.gone")
    try:
        path.replace(aside)
    except OSError:
        aside = path
    shutil.rmtree(aside, ignore_errors=True)


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, bring it to disk, and rename it into place."""
    make_folder(path.parent)
    # The suffix is kept, since some writers choose the format by it.
    beside = path.with_name(f".{path.stem}.{token()}{path.suffix}")
    try:
        write(beside)
        sync(beside)
        rename(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""

    def write(beside: Path) -> None:
        beside.write_bytes(data)

    write_with(path, write)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A file's name may be no UTF-8; Python's escapes for it are JSON's own.
    write_bytes(path, text.encode(errors="backslashreplace"))


@contextmanager
def new_folder(
    dest: Path, same: Callable[[Path], bool] | None = None, *, once: bool = False
) -> Iterator[Path]:
    """Yield an empty folder beside `dest` that takes its place when the block ends well.

    What stood at `dest` before stays untouched until the new folder is whole and on disk; it stays
    for good where `same` says of the new folder that it holds nothing else. Where another process
    puts one there meanwhile, that one stays and ours is let go; with `once`, for content that can
    only be the same, also where it did so before us.
    """
    make_folder(dest.parent)
    mine = token()
    beside = dest.with_name(f".{dest.name}.{mine}.new")
    beside.mkdir()
    try:
        yield beside
        if same is not None and same(beside):
            return
        for file in beside.rglob("*"):
            sync(file)
        old = dest.with_name(f".{dest.name}.{mine}.old")
        if once and dest.exists():
            return
        with suppress(FileNotFoundError):  # nothing is there, or another process moved it
            rename(dest, old)
        try:
            rename(beside, dest)
        except BaseException as error:
            put_back(old)
            if not isinstance(error, OSError) or error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
        sync(dest.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
