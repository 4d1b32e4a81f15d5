"""Pictures: tensors to images, grids, and PNG files that say how they were made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth.files import write_with

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """Turn pixels [B, 3, H, W] in [-1, 1] into 8-bit RGB images."""
    scaled = pixels_BCHW.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    arrays = scaled.permute(0, 2, 3, 1).byte().cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def save_picture(path: Path, image: Image.Image, settings: Mapping[str, Any]) -> None:
    """Write a PNG whose text chunks hold the settings it was drawn with.

    `dreambooth` holds all of them as JSON; `parameters` is the line other tools show.
    """
    info = PngInfo()
    info.add_itxt("dreambooth", json.dumps(dict(settings), ensure_ascii=False))
    rest = ", ".join(f"{k}: {v}" for k, v in settings.items() if k != "prompt")
    info.add_itxt("parameters", f"{settings.get('prompt', '')}\n{rest}")
    write_with(path, lambda beside: image.save(beside, format="PNG", pnginfo=info))


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Lay equal-sized images out in rows of `columns`, white where there is none."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
