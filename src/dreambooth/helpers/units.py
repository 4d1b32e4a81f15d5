"""Durations, sizes and paths, as a person reads them."""

from __future__ import annotations

import re
from pathlib import Path

from dreambooth.errors import JobError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", re.IGNORECASE)


def read_bytes(option: str, text: str) -> int:
    """Return a number of bytes a person wrote: `12GiB`, `800 MiB`, `24GB`; `JobError` otherwise."""
    match = _BYTES.fullmatch(text)
    count = round(float(match[1]) * (_UNITS | _BINARY)[match[2].lower()]) if match else 0
    if count < 2**20:
        raise JobError(f"{option}: {text!r} is no size of a memory", "write it as 12GiB or 800MiB")
    return count


def duration(seconds: float) -> str:
    """Write seconds as `1 h 05 min`, `3 min 20 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def file_size(count: int) -> str:
    """Write the bytes of files: `872 bytes`, `579 kB`, `49.8 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def folder_size(path: Path) -> int:
    """Return the bytes of all files in a folder."""
    from dreambooth.files import sizes

    return sum(sizes(path).values())


def shown_path(path: Path) -> str:
    """Write a path relative to the working folder where that is shorter."""
    relative = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return str(relative)
