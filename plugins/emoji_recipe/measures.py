"""What the figures are made of: colours of borders, likeness and spread of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from emoji_recipe import clip
from emoji_recipe.nouns import COLOURS

if TYPE_CHECKING:
    from torch import Tensor


def border_colour(picture_3hw: Tensor, width: int = 3) -> Tensor:
    """Return the per-channel median of a picture's border, sRGB 0..255: [3]."""
    pixels = (picture_3hw + 1) * 127.5
    inner = torch.ones(pixels.shape[1:], dtype=torch.bool)
    inner[width:-width, width:-width] = False
    return pixels[:, inner].median(dim=1).values


def nearest_colour(colour: Tensor) -> str:
    """Return the named background colour nearest to an sRGB colour (Euclidean)."""
    table = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    return tuple(COLOURS)[int((table - colour).square().sum(dim=1).argmin())]


@torch.no_grad()
def spread(judge: Any, pictures_b3hw: Tensor) -> float:
    """Return the mean pairwise cosine distance of the judge's picture embeddings."""
    features = clip.image_features(judge, pictures_b3hw)
    count = len(features)
    likeness = (features @ features.T).sum() - count
    return 1 - (likeness / (count * (count - 1))).item()


@torch.no_grad()
def likeness(judge: Any, pictures_b3hw: Tensor, others_b3hw: Tensor) -> float:
    """Return the mean cosine of the judge's embeddings over all pairs of the two sets."""
    made = clip.image_features(judge, pictures_b3hw)
    return float((made @ clip.image_features(judge, others_b3hw).T).mean())
