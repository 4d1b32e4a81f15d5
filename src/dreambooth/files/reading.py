"""Files that a stranger may have written, read with limits: regular ones, of bounded size."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

MAX_JSON, MAX_DEPTH = 32 << 20, 64
"""Bytes and levels of a JSON file that is read. In memory it takes up to twenty-five times that."""


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
