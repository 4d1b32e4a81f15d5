"""Files written whole or not at all (beside their place, then renamed), and read with limits."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader


MAX_JSON, MAX_DEPTH = 32 << 20, 64
"""Bytes and levels of a JSON file that is read. In memory it takes up to twenty-five times that."""


def cache_root() -> Path:
    """Return the store's folder: `DREAMBOOTH_CACHE`, or the user's cache folder.

    `JobError` for a user without a home: containers run under numbers that no one has a name for.
    """
    try:
        if named := os.environ.get("DREAMBOOTH_CACHE"):
            return Path(named).expanduser().absolute()
        if sys.platform == "darwin":
            return Path.home() / "Library/Caches/dreambooth"
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "dreambooth" / "cache"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreambooth"
    except RuntimeError as error:
        raise JobError(
            "there is no place for the cache: HOME is not set, and the system knows no home folder "
            "of this user",
            "set the environment variable DREAMBOOTH_CACHE to a folder you may write to, or HOME",
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it; the store is made for its user alone."""
    root = cache_root()
    if root in (path, *path.parents) and not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(0o700, exist_ok=True)
    path.mkdir(parents=True, exist_ok=True)


def store_trouble() -> str:
    """Return why what lies in the store may not be the user's own; empty where it must be.

    Whoever can write there can change what a run learns from. The store's usual place is closed
    to others where it stands open; a folder that the user named is left as it is.
    """
    root = cache_root()
    if not hasattr(os, "geteuid") or not root.is_dir():
        return ""
    found = root.stat()
    if found.st_uid != os.geteuid():
        return (
            f"the store {root} belongs to another user, who can change what this run reads from "
            "it: name a folder of your own in the environment variable DREAMBOOTH_CACHE"
        )
    opened = found.st_mode & 0o077
    if opened and not os.environ.get("DREAMBOOTH_CACHE"):
        root.chmod(0o700)
        return ""
    if not opened:
        return ""
    can = "change what this run reads from" if opened & 0o022 else "read your pictures' latents in"
    return f"other users can {can} the store {root}: chmod 700 keeps it yours"


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


def open_regular(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open a file to read its bytes; `OSError` for pipes and devices, which may have no end.

    With `follow=False` a link is none either.
    """
    _require_regular(os.stat(path, follow_symlinks=follow).st_mode, path)
    # Without O_NONBLOCK a pipe that took the file's place meanwhile would be waited for.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _require_regular(os.fstat(file.fileno()).st_mode, path)
    except OSError:
        file.close()
        raise
    return file


def _require_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_limited(path: Path, limit: int) -> bytes:
    """Return a regular file's bytes; `OSError` where there are more than `limit` of them."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit >> 20} MiB", str(path))
        return file.read(size)  # memory for as much as is asked for is taken at once


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object a file holds; `OSError` or `ValueError` where it holds none.

    Whoever goes through the object by recursion may do so: it nests `MAX_DEPTH` deep at most.
    """
    try:
        data = json.loads(read_limited(path, MAX_JSON).decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        inside = (v.values() if isinstance(v, dict) else v for v in level)
        level = [value for some in inside for value in some if isinstance(value, dict | list)]
    if level:
        raise ValueError("nested too deep")
    return data


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
