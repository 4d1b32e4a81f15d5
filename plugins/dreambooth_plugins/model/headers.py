"""What a checkpoint file holds, read from its header alone: nothing is loaded or unpickled."""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dreambooth.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_HEADER = 100_000_000
"""Bytes; the safetensors format allows no longer header."""


@dataclass(frozen=True)
class Header:
    """Names, shapes and metadata of a checkpoint file."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape by tensor name; empty shapes for pickles, whose headers do not tell."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """safetensors names (`F32`, `F16`, `BF16`) by tensor name."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def has(self, prefix: str) -> bool:
        """Say whether some tensor's name starts with `prefix`."""
        return any(name.startswith(prefix) for name in self.shapes)


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file, or the names in a zipped pickle (.ckpt).

    `JobError` where the file is cut short or is something else.
    """
    try:
        if path.suffix == ".safetensors":
            return _safetensors_header(path)
        return _pickle_header(path)
    except Exception as error:  # foreign bytes: struct, zipfile and JSON of any shape may complain
        raise JobError(
            f"{path} cannot be read as a checkpoint: {error or type(error).__name__}",
            "the download may be incomplete: compare its size or checksum with the source",
        ) from error


def _safetensors_header(path: Path) -> Header:
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, MAX_HEADER):
            raise ValueError("not a safetensors file, or cut short")
        entries = json.loads(file.read(length))
    metadata = entries.pop("__metadata__", {})
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if 8 + length + end != size:
        raise ValueError(f"{size} bytes where the header announces {8 + length + end}")
    return Header(
        {name: tuple(entry["shape"]) for name, entry in entries.items()},
        {name: entry["dtype"] for name, entry in entries.items()},
        {str(name): str(value) for name, value in metadata.items()},
    )


def _pickle_header(path: Path) -> Header:
    # genops walks over the opcodes without executing any of them.
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if not names:
            raise ValueError("a pickle of a kind that torch does not write")
        if archive.getinfo(names[0]).file_size > MAX_HEADER:  # a few bytes may unpack to gigabytes
            raise ValueError(f"{names[0]} unpacks to more than {MAX_HEADER >> 20} MiB")
        ops = pickletools.genops(archive.read(names[0]))
        strings = [str(arg) for op, arg, _ in ops if "UNICODE" in op.name]
    return Header({text: () for text in strings if "." in text})
