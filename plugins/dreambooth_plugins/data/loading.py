"""One picture made ready for the model: read, checked, resized, cropped."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from dreambooth.errors import RunError
from dreambooth.files import read_limited
from dreambooth.interfaces import RowGeometry, Sample
from dreambooth_plugins.data.formats import MAX_BYTES
from dreambooth_plugins.data.images import ImageRejected, cover, decode, resize

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth.interfaces import Item


def read(item: Item) -> Image:
    """Decode an item's file; `RunError` where it is not the file that was scanned."""
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
        return decode(data)
    except ImageRejected as error:
        raise RunError(f"{item.path}: {error}", hint) from error


def room(image: Image, target: tuple[int, int]) -> tuple[int, int]:
    """Return how much larger (height, width) the image is once resized to cover `target`."""
    height, width = cover((image.height, image.width), target)
    return height - target[0], width - target[1]


def crop(image: Image, target: tuple[int, int], at: tuple[int, int], mirror: bool) -> Sample:
    """Resize to cover `target`, cut it out at (top, left) and mirror it if asked for.

    A mirrored sample's crop corner is given in the mirrored resized image, where the cut lies
    room - left from the left: the picture the model is told about is the one it sees.
    """
    full = cover((image.height, image.width), target)
    top, left = at
    box = (left, top, left + target[1], top + target[0])
    pixels = np.asarray(resize(image, full).crop(box))
    if mirror:
        pixels = pixels[:, ::-1]
        left = full[1] - target[1] - left
    geometry = RowGeometry((image.height, image.width), (top, left), target)
    return Sample(np.array(pixels), geometry)  # a copy: what Pillow lends is read-only
