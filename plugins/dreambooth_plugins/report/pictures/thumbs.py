"""Pictures made small: WebP of bounded size, each kept once."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

from PIL import Image

from dreambooth.files import read_limited
from dreambooth_plugins.data.images import ImageRejected, decode

if TYPE_CHECKING:
    from pathlib import Path

SIDE, QUALITY = 512, 80
"""Longer side of a thumbnail in pixels, and WebP's quality."""
TINY = 128
"""Pictures up to this side are kept without loss: it costs little, and they are shown enlarged."""
MAX_FILE = 64 << 20


def encoded(image: Image.Image, side: int = SIDE) -> bytes:
    """Return a picture as WebP whose longer side is `side` pixels at most, without metadata."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if max(small.size) <= TINY:
        small.save(file, "WEBP", lossless=True, method=4)
    else:
        small.save(file, "WEBP", quality=QUALITY, method=4)
    return file.getvalue()


def thumbnail(path: Path, side: int = SIDE) -> bytes | None:
    """Return a picture's thumbnail; None where the file is gone, a link, or no picture."""
    try:
        if path.is_symlink():  # it may lead out of the run
            return None
        return encoded(decode(read_limited(path, MAX_FILE)), side)
    except (OSError, ImageRejected):
        return None


class Pool:
    """Thumbnails by name; equal ones share a name."""

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}
        self._names: dict[bytes, str] = {}

    def add(self, data: bytes) -> str:
        """Keep a picture and return its name."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._names:
            self._names[digest] = f"p{len(self.pictures)}"
            self.pictures[self._names[digest]] = data
        return self._names[digest]

    @property
    def size(self) -> int:
        """Bytes of all pictures as the page holds them: base64 makes four of three."""
        return sum(4 * ((len(data) + 2) // 3) + 12 for data in self.pictures.values())
