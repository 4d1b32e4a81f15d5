"""Latents of class images read from a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dreambooth.errors import JobError
from dreambooth.helpers.pictures import at_once, encode, to_pixels
from dreambooth.interfaces import PriorRow, PriorSet
from dreambooth_plugins.data.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Context, LoadedModel

CHUNK = 8


class OwnImages(PriorSet):
    """Cached moments of the user's class images; latents are drawn from them each time."""

    def __init__(self, path: Path, prompt: str, ctx: Context, model: LoadedModel) -> None:
        self._ctx, self._model = ctx, model
        self._prompt = ctx.job.subject.fill(prompt)
        self._source = Folder(
            path=path, prompt=prompt, resolution=ctx.job.data.size, captions="none"
        )
        try:
            self._items = self._source.scan(ctx).items
        except JobError as error:  # told of the folder that the job names
            message, hint = (t.replace("data.", "prior.") for t in (error.message, error.hint))
            raise JobError(message, hint) from error
        key = {
            "images": [item.sha256 for item in self._items],
            "transform": self._source.pixels_key(),
            "at_once": at_once(self._source.size),
            "encoder": [model.fingerprint(p) for p in model.info.part_names("vae")],
        }
        total = len(self._items)
        self._moments = ctx.chunks("class-moments", key, CHUNK, self._encode, total=total)
        self._moments.ensure(total, "Encoding class images")

    @torch.no_grad()
    def _encode(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rng = self._ctx.numpy_random("unused")
        samples = [self._source.load(self._items[i], 0, rng) for i in indices]
        latents = encode(self._model, to_pixels(samples).to(self._ctx.device))
        out = {"mean": latents.mean.float()}
        if latents.std is not None:
            out["std"] = latents.std.float()
        return out

    def rows(self, indices: Sequence[int], step: int) -> list[PriorRow]:
        """Return one class row an instance row; each epoch has an order of its own."""
        return [self._row(i) for i in indices]

    def _row(self, index: int) -> PriorRow:
        epoch, place = divmod(index, len(self._items))
        rng = self._ctx.random("class-order", epoch)
        item = int(torch.randperm(len(self._items), generator=rng)[place])
        row = self._moments.row(item)
        latents = row["mean"]
        if "std" in row:
            noise = torch.randn(latents.shape, generator=self._ctx.random("class-vae", index))
            latents = latents + row["std"] * noise
        return PriorRow(prompt=self._prompt, latents=latents)

    def entries(self) -> tuple[str, ...]:
        """Return the store entry of the moments."""
        return (self._moments.key,)
