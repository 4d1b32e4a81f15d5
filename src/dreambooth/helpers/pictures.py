"""Pictures: tensors to images, grids, and PNG files that say how they were made."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from dreambooth.files import write_with
from dreambooth.interfaces import Latents

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from dreambooth.interfaces import LoadedModel, Sample

PIXELS_AT_ONCE = 512 * 512
"""Pixels that go through the VAE together: its memory grows with them alone, three quarters of a
GiB for as many in Stable Diffusion's decoder, and a batch of large pictures saves no time."""


def at_once(size: tuple[int, int]) -> int:
    """Return how many pictures of (height, width) pixels go through the VAE together."""
    return max(1, PIXELS_AT_ONCE // (size[0] * size[1]))


def decode(model: LoadedModel, latents: Tensor) -> Tensor:
    """Decode latents [B, C, h, w] to pixels [B, 3, H, W] in [-1, 1], one or two at a time."""
    import torch

    factor = model.info.latent.factor
    count = min(2, at_once((latents.shape[-2] * factor, latents.shape[-1] * factor)))
    return torch.cat([model.decode(some) for some in latents.split(count)])


def encode(model: LoadedModel, pixels_BCHW: Tensor) -> Latents:
    """Encode float32 pixels in [-1, 1], some pictures at a time, without gradients."""
    import torch

    height, width = pixels_BCHW.shape[-2:]
    with torch.no_grad():
        parts = [model.encode_images(some) for some in pixels_BCHW.split(at_once((height, width)))]
    stds = [part.std for part in parts if part.std is not None]
    return Latents(torch.cat([part.mean for part in parts]), torch.cat(stds) if stds else None)


def to_pixels(samples: Sequence[Sample]) -> Tensor:
    """Return [B, 3, H, W] float32 in [-1, 1] from 8-bit samples."""
    import torch

    stacked = torch.stack([torch.from_numpy(s.pixels) for s in samples])
    return stacked.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """Turn pixels [B, 3, H, W] in [-1, 1] into 8-bit RGB images."""
    from PIL import Image

    scaled = pixels_BCHW.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    arrays = scaled.permute(0, 2, 3, 1).byte().cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def save_picture(path: Path, image: Image.Image, settings: Mapping[str, Any]) -> None:
    """Write a PNG whose text chunks hold the settings it was drawn with.

    `dreambooth` holds all of them as JSON, `parameters` what A1111, Forge and ComfyUI read.
    """
    from PIL.PngImagePlugin import PngInfo

    from dreambooth.helpers.infotext import KEY, infotext

    info = PngInfo()
    info.add_itxt("dreambooth", json.dumps(dict(settings), ensure_ascii=False))
    # A plain text chunk where Latin-1 can hold it: older readers know no other.
    info.add_text(KEY, infotext(settings, image.size))
    write_with(path, lambda beside: image.save(beside, format="PNG", pnginfo=info))


def grid(images: Sequence[Image.Image], columns: int = 0, background: str = "white") -> Image.Image:
    """Lay images (at least one) out in rows of `columns`, without gaps.

    With 0 columns the grid is nearly square. Cells have the size of the largest image.
    """
    from PIL import Image

    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), background)
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
