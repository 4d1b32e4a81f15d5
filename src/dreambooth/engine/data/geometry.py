"""What goes along with the latents of a row: its geometry, and its mask on the latent grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dreambooth.interfaces import RowGeometry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def plain_geometry(size: tuple[int, int]) -> RowGeometry:
    """Return the geometry of an image that was made at the training size."""
    return RowGeometry(original_size=size, crop_top_left=(0, 0), target_size=size)


def pack_geometry(g: RowGeometry) -> Tensor:
    """Return a geometry as six int32 numbers, for the cache."""
    return torch.tensor([*g.original_size, *g.crop_top_left, *g.target_size], dtype=torch.int32)


def unpack_geometry(packed: Tensor) -> RowGeometry:
    """Undo `pack_geometry`."""
    a, b, c, d, e, f = packed.tolist()
    return RowGeometry((a, b), (c, d), (e, f))


def shrink_masks(masks: Sequence[object], size: tuple[int, int]) -> Tensor | None:
    """Average pixel masks down to the latent grid, [B, 1, h, w]; absent masks count as all ones."""
    if all(m is None for m in masks):
        return None
    out = []
    for m in masks:
        if m is None:
            out.append(torch.ones(1, 1, *size))
        else:
            pixels = torch.as_tensor(m, dtype=torch.float32)[None, None]
            out.append(torch.nn.functional.interpolate(pixels, size=size, mode="area"))
    return torch.cat(out)
