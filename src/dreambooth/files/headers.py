"""Headers of safetensors files that a stranger may have written: read whole, none of it believed.

Torch-free and without reading a tensor. What passes here is what safetensors itself accepts: types,
shapes and offsets agree, no byte belongs to two tensors or to none, and the file ends where the
header says. So a small file cannot announce a large tensor.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dreambooth.files.reading import open_regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

MAX_HEADER = 32 << 20
"""Bytes. The format allows three times as much; whole models need less than one hundredth."""
MAX_NAME, MAX_SIDE = 1024, 2**40
"""Characters of a tensor's name, and length of one of its sides."""
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of one number by the format's name of its type; torch has them all."""
_UNPACK = {"F16": "<e", "F32": "<f", "F64": "<d"}


@dataclass(frozen=True)
class Header:
    """Names, types, shapes and metadata of a file with tensors."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape by tensor name; empty shapes for pickles, whose headers do not tell."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """safetensors names (`F32`, `F16`, `BF16`) by tensor name."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    starts: Mapping[str, int] = field(default_factory=dict)
    """Where a tensor's bytes begin in the file."""

    def has(self, prefix: str) -> bool:
        """Say whether some tensor's name starts with `prefix`."""
        return any(name.startswith(prefix) for name in self.shapes)

    def floating(self, name: str) -> bool:
        """Say whether a tensor holds floating-point numbers."""
        return self.dtypes[name].startswith(("F", "BF"))


def read_header(path: Path) -> Header:
    """Read and check a header; `OSError` or `ValueError` says what is wrong with the file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        text = _header_text(file, size)
    try:
        entries = json.loads(text)
    except RecursionError:
        raise ValueError("its header is nested too deep") from None
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("the metadata in its header must be texts by name")
    for name, entry in entries.items():
        _check_entry(name, entry)
    begin = 8 + len(text.encode())
    _check_offsets(entries, size - begin)
    return Header(
        {name: tuple(entry["shape"]) for name, entry in entries.items()},
        {name: entry["dtype"] for name, entry in entries.items()},
        metadata,
        {name: begin + entry["data_offsets"][0] for name, entry in entries.items()},
    )


def _header_text(file: BinaryIO, size: int) -> str:
    head = file.read(8)
    if len(head) < 8:
        raise ValueError("not a safetensors file, or cut short")
    (length,) = struct.unpack("<Q", head)
    if length > size - 8:
        raise ValueError("not a safetensors file, or cut short")
    if length > MAX_HEADER:
        raise ValueError(f"its header takes more than {MAX_HEADER >> 20} MiB")
    data = file.read(length)
    if len(data) < length or not data.startswith(b"{"):
        raise ValueError("not a safetensors file, or cut short")
    return data.decode("utf-8")


def _whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _check_entry(name: str, entry: Any) -> None:
    """Raise `ValueError` unless a header's entry says type, shape and place, and they agree."""
    if len(name) > MAX_NAME:
        raise ValueError(f"a tensor's name has {len(name)} characters")
    if not isinstance(entry, dict):
        raise ValueError(f'its header does not say what "{name}" is')
    shape, places = entry.get("shape"), entry.get("data_offsets")
    kind = entry.get("dtype")
    if not isinstance(kind, str) or kind not in BYTES:
        raise ValueError(f'the type of "{name}" is not known')
    if not isinstance(shape, list) or not all(_whole(side, MAX_SIDE) for side in shape):
        raise ValueError(f'the shape of "{name}" is none')
    if not isinstance(places, list) or len(places) != 2:
        raise ValueError(f'its header does not say where "{name}" lies')
    if not all(_whole(place, 2**63) for place in places):
        raise ValueError(f'its header does not say where "{name}" lies')
    if places[1] - places[0] != math.prod(shape) * BYTES[kind]:
        raise ValueError(f'"{name}" has other bytes than its type and shape call for')


def _check_offsets(entries: Mapping[str, Any], size: int) -> None:
    """Raise `ValueError` unless the tensors fill the rest of the file, none over another."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, after = entry["data_offsets"]
        if begin != end:
            raise ValueError(f'"{name}" lies over another tensor, or leaves a gap before it')
        end = after
    if end != size:
        raise ValueError(f"{size} bytes of tensors where the header announces {end}")


def read_number(path: Path, header: Header, name: str) -> float:
    """Return the one number of a tensor; `ValueError` where it has several, or none we can read."""
    if math.prod(header.shapes[name]) != 1:
        raise ValueError(f'"{name}" holds {list(header.shapes[name])} numbers, not one')
    kind = header.dtypes[name]
    with open_regular(path) as file:
        file.seek(header.starts[name])
        data = file.read(BYTES[kind])
    if kind == "BF16":  # the upper half of a float32
        kind, data = "F32", b"\0\0" + data
    if kind in _UNPACK:
        return float(struct.unpack(_UNPACK[kind], data)[0])
    if kind[0] in "IU":
        return float(int.from_bytes(data, "little", signed=kind[0] == "I"))
    raise ValueError(f'"{name}" is a number of an unusual type ({kind})')
