"""The latent moments (mean and std) of images: encoded once, kept in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dreambooth.engine.data.geometry import pack_geometry, shrink_masks
from dreambooth.helpers.pictures import at_once, encode, to_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import Chunks, Item, LoadedModel

MOMENTS_CHUNK = 8
"""Images whose moments share a file of the store."""


def open_moments(ctx: EngineContext, model: LoadedModel, items: Sequence[Item]) -> Chunks:
    """Cache the latent moments (mean and std) of every variant of every image."""
    data = ctx.job.data
    vae_parts = model.info.part_names("vae")
    numbered = [(item, variant) for item in items for variant in range(data.variants(item) or 1)]
    rng = ctx.numpy_random("unused")

    @torch.no_grad()
    def build(indices: Sequence[int]) -> dict[str, Tensor]:
        samples = [data.load(*numbered[i], rng) for i in indices]
        latents = encode(model, to_pixels(samples).to(ctx.device))
        out = {"mean": latents.mean.float()}
        out["geometry"] = torch.stack([pack_geometry(s.geometry) for s in samples])
        if latents.std is not None:
            out["std"] = latents.std.float()
        size = (latents.mean.shape[-2], latents.mean.shape[-1])
        if (mask := shrink_masks([s.mask for s in samples], size)) is not None:
            out["mask"] = mask[:, 0]
        return out

    key = {
        "images": [[*content(item), variant] for item, variant in numbered],
        "transform": data.pixels_key(),
        "at_once": at_once(data.size),
        "encoder": [model.fingerprint(part) for part in vae_parts],
    }
    store = ctx.chunks("moments", key, MOMENTS_CHUNK, build, total=len(numbered))
    store.ensure(len(numbered), "Encoding images")
    return store


def content(item: Item) -> list[str]:
    """Return the hashes of what an item consists of: the image and, where it has one, its mask."""
    return [item.sha256, *([item.mask_sha256] if item.mask_sha256 else [])]
