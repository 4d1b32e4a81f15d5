"""ONNX files of one node, written by hand: the tests need no library that writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FLOAT, INT, INTS = 1, 2, 7
"""Numbers that onnx.proto gives to a tensor's type, and to kinds of attributes."""


def number(value: int) -> bytes:
    """Return a varint."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def whole(field: int, value: int) -> bytes:
    return number(field << 3) + number(value)


def inside(field: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return number(field << 3 | 2) + number(len(data)) + data


def tensor(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(inside(1, whole(1, side)) for side in shape)
    return inside(1, name) + inside(2, inside(1, whole(1, FLOAT) + inside(2, dims)))


def write_mean_of_channels(path: Path, side: int = 320, *, keep_channels: bool = False) -> Path:
    """Write a network [1, 3, side, side] -> [1, 1, side, side]: the square of the mean over
    channels, so that the scale of what it is given shows.

    With `keep_channels` it answers with the square of what it was given, as no masker does.
    """
    axes = inside(1, "axes") + whole(8, 1) + whole(20, INTS)
    keep = inside(1, "keepdims") + whole(3, 1) + whole(20, INT)
    mean = inside(4, "ReduceMean") + inside(5, axes) + inside(5, keep)
    first = inside(1, "x") + inside(2, "m") + (inside(4, "Identity") if keep_channels else mean)
    second = inside(1, "m") + inside(1, "m") + inside(2, "y") + inside(4, "Mul")
    channels = 3 if keep_channels else 1
    graph = inside(1, first) + inside(1, second) + inside(2, "mean")
    graph += inside(11, tensor("x", (1, 3, side, side)))
    graph += inside(12, tensor("y", (1, channels, side, side)))
    path.write_bytes(whole(1, 8) + inside(7, graph) + inside(8, whole(2, 13)))
    return path
