"""Pictures as a network's preprocessor_config.json wants them, with Pillow alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

CLIP = {
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""What CLIP's pictures are processed with, sizes left out."""


class Processor:
    """The processing that a preprocessor_config.json describes."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._size = config.get("size", {"shortest_edge": 224})
        self._crop = config.get("crop_size") if config.get("do_center_crop") else None
        self._resample = Image.Resampling(config.get("resample", Image.Resampling.BICUBIC))
        self._scale = float(config.get("rescale_factor", 1 / 255))
        self._mean = torch.tensor(config.get("image_mean", [0.5] * 3)).view(3, 1, 1)
        self._std = torch.tensor(config.get("image_std", [0.5] * 3)).view(3, 1, 1)

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Return pixels [B, 3, H, W] as the model wants them."""
        return torch.stack([self._one(image) for image in images])

    def _one(self, image: Image.Image) -> Tensor:
        image = image.resize(self._sides(image), self._resample)
        if self._crop is not None:
            height, width = _pair(self._crop)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() * self._scale
        return (pixels - self._mean) / self._std

    def _sides(self, image: Image.Image) -> tuple[int, int]:
        if isinstance(self._size, dict) and "shortest_edge" in self._size:
            short = int(self._size["shortest_edge"])
            if image.width <= image.height:
                return short, int(short * image.height / image.width)
            return int(short * image.width / image.height), short
        height, width = _pair(self._size)
        return width, height


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return int(size), int(size)
