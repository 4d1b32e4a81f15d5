"""Distances between the pictures of a set."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from dreambooth.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image


def mean_pairwise_rms(pictures: Sequence[Image]) -> float:
    """Return the mean over pairs of the RMS pixel distance (RGB in 0..1) of two or more pictures.

    Raises `RunError` where sizes differ.
    """
    if len({picture.size for picture in pictures}) > 1:
        raise RunError(
            "the pictures of one prompt differ in size, so they have no pixel distance",
            "draw all samples at one size",
        )
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0 for picture in pictures]
    # Pair by pair: the Gram-matrix short cut cancels badly just where pictures are alike.
    distances = [
        float(np.sqrt(np.mean((a - b) ** 2, dtype=np.float64))) for a, b in combinations(arrays, 2)
    ]
    return sum(distances) / len(distances)
