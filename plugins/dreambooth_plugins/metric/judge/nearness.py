"""Pictures that repeat a photograph, by their pixels: what a soft copy cannot hide from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from dreambooth_plugins.metric.judge.measures import scored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dreambooth.interfaces import Drawing, Evidence, Score

SIDE = 16
"""Pixels of a side at which pictures are compared: composition and colours, no detail."""


def photo_distance(evidence: Evidence) -> list[Score]:
    """RMS distance (RGB in 0..1, at 16 x 16) of a picture to its nearest photograph or its mirror.

    Over pictures whose prompt names the subject. A model that is not sharp enough for an encoder
    to see it may still draw a photograph again, place for place. `real`: each photograph's nearest
    other one.
    """
    if not evidence.instances:
        return []
    crops = np.stack([thumbnail(image) for image in evidence.instances])
    both = np.concatenate([crops, [thumbnail(ImageOps.mirror(i)) for i in evidence.instances]])

    def value(drawings: Sequence[Drawing]) -> Tensor:
        return torch.tensor([distances(thumbnail(d.image), both).min() for d in drawings])

    real = None
    if len(crops) > 1:
        others = [np.delete(crops, i, axis=0) for i in range(len(crops))]
        nearest = [distances(c, o).min() for c, o in zip(crops, others, strict=True)]
        real = float(np.mean(nearest))
    return scored("photo_distance", evidence, "pixels", evidence.is_subject, value, "higher", real)


def thumbnail(image: Image.Image) -> NDArray[np.float64]:
    """Return a picture at `SIDE` x `SIDE`, RGB in 0..1."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255


def distances(one: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the RMS distances [N] of a picture [H, W, 3] to others [N, H, W, 3]."""
    found: NDArray[np.float64] = np.sqrt(((others - one) ** 2).mean(axis=(1, 2, 3)))
    return found
