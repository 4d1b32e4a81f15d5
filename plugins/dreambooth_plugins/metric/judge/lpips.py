"""LPIPS (Zhang et al. 2018) with AlexNet, from files a person names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional

from dreambooth.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

CONVOLUTIONS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))
"""Of AlexNet's five: its place in `features`, stride and padding."""
POOLED = (1, 2)
"""Convolutions that a 3 x 3 pooling of stride 2 comes before."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips:
    """The distance of pictures: heads over differences of AlexNet's unit features."""

    def __init__(self, folder: Path) -> None:
        found = weights(folder)
        try:
            self._layers = [
                (found[f"features.{i}.weight"], found[f"features.{i}.bias"])
                for i, _, _ in CONVOLUTIONS
            ]
            self._heads = [found[f"lin{k}.model.1.weight"] for k in range(len(CONVOLUTIONS))]
        except KeyError as error:
            raise RunError(
                f"{folder} holds no LPIPS: {error.args[0]} is missing",
                "it takes AlexNet's weights (features.0.weight, ...) and the heads' "
                "(lin0.model.1.weight, ...), as .safetensors or .pth",
            ) from None

    def distances(self, images: Sequence[Image]) -> Tensor:
        """Return distances [B, B] of pictures, 0 of a picture and itself."""
        features = [self._features(image) for image in images]
        found = torch.zeros(len(images), len(images))
        for i, one in enumerate(features):
            for j in range(i):
                found[i, j] = found[j, i] = self._between(one, features[j])
        return found

    @torch.no_grad()
    def _features(self, image: Image) -> list[Tensor]:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()
        x = pixels / 127.5 - 1
        x = (x - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SCALE).view(3, 1, 1)
        x = x[None]
        found = []
        for k, ((weight, bias), (_, stride, padding)) in enumerate(
            zip(self._layers, CONVOLUTIONS, strict=True)
        ):
            if k in POOLED:
                x = functional.max_pool2d(x, 3, 2)
            x = functional.conv2d(x, weight, bias, stride, padding).relu()
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.no_grad()
    def _between(self, one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
        if one[0].shape != other[0].shape:
            raise RunError("LPIPS compares pictures of one size", "draw all samples at one size")
        apart = [
            functional.conv2d((a - b).square(), head).mean()
            for a, b, head in zip(one, other, self._heads, strict=True)
        ]
        return float(torch.stack(apart).sum())


def weights(folder: Path) -> Mapping[str, Tensor]:
    """Return all tensors of a folder's .safetensors and .pth files; pickles as tensors alone."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    for path in sorted([*folder.glob("*.pth"), *folder.glob("*.pt")]):
        found |= torch.load(path, weights_only=True, map_location="cpu")
    return {name.removeprefix("net."): tensor.float() for name, tensor in found.items()}
