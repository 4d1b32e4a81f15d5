"""One picture made ready for the model: read, checked, resized, cropped."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dreambooth.errors import RunError
from dreambooth.files import read_limited
from dreambooth.interfaces import RowGeometry, Sample
from dreambooth_plugins.data.file_types import MAX_BYTES
from dreambooth_plugins.data.images import (
    ImageRejected,
    cover,
    decode,
    decode_alpha,
    decode_mask,
    resize,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from dreambooth.interfaces import Item

T = TypeVar("T")


def read(item: Item) -> Image:
    """Decode an item's file; `RunError` where it is not the file that was scanned."""
    return _decoded(item, decode)


def _decoded(item: Item, how: Callable[[bytes], T]) -> T:
    hint = "Keep the pictures as they are while a run is under way; start the run again."
    if item.path is None:
        raise RunError(f"{item.id} has no file", "A folder's items come from its own scan.")
    try:
        data = read_limited(item.path, MAX_BYTES)
    except OSError as error:
        raise RunError(f"{item.path} can no longer be read: {error.strerror}", hint) from error
    if hashlib.sha256(data).hexdigest() != item.sha256:
        raise RunError(f"{item.path} has changed since the run looked at it", hint)
    try:
        return how(data)
    except ImageRejected as error:
        raise RunError(f"{item.path}: {error}", hint) from error


def read_mask(item: Item, alpha: bool) -> Image | None:
    """Decode an item's mask: its own file, else (with `alpha`) the picture's transparency.

    None where it has neither. `RunError` where the file is not the one that was scanned.
    """
    if item.mask is not None:
        as_file = replace(item, path=item.mask, sha256=item.mask_sha256 or "")
        return _decoded(as_file, decode_mask)
    return _decoded(item, decode_alpha) if alpha else None


def room(image: Image, target: tuple[int, int]) -> tuple[int, int]:
    """Return how much larger (height, width) the image is once resized to cover `target`."""
    height, width = cover((image.height, image.width), target)
    return height - target[0], width - target[1]


def crop(
    image: Image,
    target: tuple[int, int],
    at: tuple[int, int],
    mirror: bool,
    mask: Image | None = None,
) -> Sample:
    """Resize to cover `target`, cut it out at (top, left) and mirror it if asked for.

    The mask (mode L, of the picture's shape) goes the same way.
    A mirrored sample's crop corner is given in the mirrored resized image, where the cut lies
    room - left from the left: the picture the model is told about is the one it sees.
    """
    full = cover((image.height, image.width), target)
    top, left = at
    box = (left, top, left + target[1], top + target[0])
    pixels = np.asarray(resize(image, full).crop(box))
    cut = None if mask is None else np.asarray(resize(mask, full).crop(box), np.float32) / 255.0
    if mirror:
        pixels, cut = pixels[:, ::-1], None if cut is None else cut[:, ::-1]
        left = full[1] - target[1] - left
    geometry = RowGeometry((image.height, image.width), (top, left), target)
    # Copies: what Pillow lends is read-only, and torch takes no negative strides.
    return Sample(np.array(pixels), geometry, None if cut is None else np.array(cut))
