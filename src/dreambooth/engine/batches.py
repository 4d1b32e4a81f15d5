"""Which rows a step trains on, and their latents, prompts and noise: functions, not state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.data.geometry import plain_geometry, shrink_masks, unpack_geometry
from dreambooth.engine.data.reading import Reader
from dreambooth.helpers.pictures import to_pixels
from dreambooth.helpers.random import permutation
from dreambooth.helpers.transfer import upload
from dreambooth.plugins.faults import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import (
        Chunks,
        DataSource,
        Draw,
        Item,
        Latents,
        NoiseSchedule,
        PriorRow,
        PriorSet,
        RowGeometry,
        Sample,
    )


@dataclass(frozen=True)
class Batch:
    """Rows of one forward: instance rows first, then class rows. Tensors are on the device."""

    instances: int
    """How many instance rows there are."""

    latents: Tensor
    """[B, C, h, w] float32."""
    draw: Draw
    prompts: list[str]
    reference_prompts: list[str]
    geometry: list[RowGeometry]
    is_prior: Tensor
    """[B] bool."""
    wants_reference: Tensor | None
    """[B] bool: rows whose target is the frozen base's prediction; None where there are none."""
    reference_rows: list[int]
    """Rows that the frozen base is asked about: these, and those the loss compares with it."""
    reference_at: Tensor | None
    """`reference_rows` as int64, to index with; None where there are none."""
    weight: Tensor
    """[B] float32."""
    mask: Tensor | None
    """[B, 1, h, w] float32 in 0..1, or None without masks."""
    ids: list[str]
    """Names of the rows, for messages."""


@dataclass(frozen=True)
class Encoded:
    """Latent moments of one image at the training size: on the host, or just encoded there."""

    mean: Tensor
    """[C, h, w] float32."""
    std: Tensor | None
    geometry: RowGeometry
    mask: object
    """Anything `torch.as_tensor` takes, or None."""


@dataclass(frozen=True)
class Instances:
    """B instance rows that are ready to be noised."""

    indices: range
    latents: Tensor
    """[B, C, h, w] float32."""
    draw: Draw
    prompts: list[str]
    geometry: list[RowGeometry]
    mask: Tensor | None
    """[B, 1, h, w] float32 in 0..1, or None without masks."""
    ids: list[str]


class Batches:
    """Makes the rows of any step, in any order, from (seed, step) alone."""

    def __init__(
        self,
        ctx: EngineContext,
        data: DataSource,
        items: Sequence[Item],
        prior: PriorSet,
        schedule: NoiseSchedule,
        moments: Chunks | None,
        offsets: Mapping[str, tuple[int, int]],
        encode: Callable[[Tensor], Latents],
    ) -> None:
        self._ctx, self._data, self._items = ctx, data, items
        self._prior, self._schedule = prior, schedule
        self._moments, self._encode = moments, encode
        self._loss, self._subject = ctx.job.loss, ctx.job.subject
        train = ctx.job.train
        self._per_forward = train.batch_size
        self._accumulation = train.accumulation
        self.effective = train.batch_size * train.accumulation * ctx.world_size
        self._offsets = offsets
        self._order = lru_cache(maxsize=4)(
            lambda epoch: permutation(train.seed, "order", epoch, len(items))
        )
        self.reader = Reader(self._sample, train.workers if moments is None else 0)

    def indices(self, step: int, micro: int) -> range:
        """Return the global sample indices of micro-batch `micro` of `step` on this process.

        The effective batch of a step is one range over all processes and micro-batches, so
        batch 4, 2 x 2 accumulation and two processes of 2 see the same rows.
        """
        first = step * self.effective
        first += (micro * self._ctx.world_size + self._ctx.rank) * self._per_forward
        return range(first, first + self._per_forward)

    def item(self, index: int) -> int:
        """Return which item global sample `index` shows: epochs are shuffled one by one."""
        epoch, place = divmod(index, len(self._items))
        return self._order(epoch)[place]

    def make(self, step: int, micro: int) -> Batch:
        """Build the rows of one forward."""
        ctx, indices = self._ctx, self.indices(step, micro)
        items = [self._items[self.item(i)] for i in indices]
        latents, geometry, mask = self._instance(indices, self._after(step, micro))
        subject = ctx.job.subject
        prompts = [
            self._data.row_prompt(item, subject, ctx.numpy_random("caption", i))
            for i, item in zip(indices, items, strict=True)
        ]
        rows = self._prior.rows(indices, step)
        c, h, w = latents.shape[1:]
        draw = self._schedule.draw((c, h, w), [ctx.random("noise", i) for i in indices])
        ids = [item.id for item in items]
        return self.join(
            Instances(indices, latents, draw, prompts, geometry, mask, ids), rows, "class-noise"
        )

    def join(self, instances: Instances, rows: list[PriorRow], stream: str) -> Batch:
        """Put instance rows and their class rows, noised from `stream`, into one batch."""
        indices, mask = instances.indices, instances.mask
        latents, draw, prompts = instances.latents, instances.draw, instances.prompts
        geometry = instances.geometry + [plain_geometry(self._data.size)] * len(rows)
        if rows:
            latents, draw = self._with_class_rows(rows, indices, latents, draw, stream)
        count, (h, w) = len(latents), latents.shape[-2:]
        wants = [False] * len(indices) + [row.target == "reference" for row in rows]
        if mask is not None:
            mask = torch.cat([mask, torch.ones(len(rows), 1, h, w)])
        device, asked = self._ctx.device, self._reference_rows(wants, len(indices))
        return Batch(
            instances=len(indices),
            latents=upload(latents, device),
            draw=type(draw)(upload(draw.t, device), upload(draw.noise, device)),
            prompts=prompts + [row.prompt for row in rows],
            reference_prompts=[self._loss.reference_prompt(p, self._subject) for p in prompts]
            + [row.reference_prompt or row.prompt for row in rows],
            geometry=geometry,
            is_prior=torch.arange(count, device=device) >= len(indices),
            wants_reference=upload(torch.tensor(wants), device) if any(wants) else None,
            reference_rows=asked,
            reference_at=upload(torch.tensor(asked), device) if asked else None,
            weight=torch.ones(count, device=device),
            mask=None if mask is None else upload(mask, device),
            ids=instances.ids + [f"class image {i}" for i in range(len(rows))],
        )

    def _reference_rows(self, wants: list[bool], instances: int) -> list[int]:
        needs = self._loss.required()
        of_class = bool(needs & {"reference", "class_reference"})
        asked = ["reference" in needs] * instances + [of_class] * (len(wants) - instances)
        return [i for i, row in enumerate(zip(wants, asked, strict=True)) if any(row)]

    def plain(self, items: Sequence[Item]) -> list[Encoded]:
        """Return the latent moments of images as they are, without augmentation, one an item."""
        if self._moments is not None:
            return [self._stored(self._offsets[item.id][0]) for item in items]
        rng = self._ctx.numpy_random("unused")
        return [e for item in items for e in self._encoded([self._data.load(item, 0, rng)])]

    def _after(self, step: int, micro: int) -> range:
        """Return the indices of the micro-batch that comes next, to be read meanwhile."""
        last = micro + 1 == self._accumulation
        return self.indices(step + 1, 0) if last else self.indices(step, micro + 1)

    def _instance(
        self, indices: range, upcoming: range
    ) -> tuple[Tensor, list[RowGeometry], Tensor | None]:
        rows = self._fresh(indices, upcoming) if self._moments is None else self._cached(indices)
        latents = torch.stack([row.mean for row in rows])
        if rows[0].std is not None:
            draws = [
                torch.randn(latents.shape[1:], generator=self._ctx.random("vae", i))
                for i in indices
            ]
            stds = [row.std for row in rows if row.std is not None]
            latents = latents + torch.stack(stds) * upload(torch.stack(draws), latents.device)
        size = (latents.shape[-2], latents.shape[-1])
        return latents, [r.geometry for r in rows], shrink_masks([r.mask for r in rows], size)

    def _sample(self, index: int) -> Sample:
        item, rng = self._items[self.item(index)], self._ctx.numpy_random("augment", index)
        count = self._data.variants(item)
        # The same draw as from the cache, so that a run without it trains on the same rows.
        variant = None if count is None else int(rng.integers(count))
        return self._data.load(item, variant, rng)

    def _fresh(self, indices: range, upcoming: range) -> list[Encoded]:
        return self._encoded(self.reader.samples(indices, upcoming))

    def _encoded(self, samples: Sequence[Sample]) -> list[Encoded]:
        encoded = self._encode(upload(to_pixels(samples), self._ctx.device))
        means, stds = encoded.mean, encoded.std
        return [
            Encoded(means[k], None if stds is None else stds[k], s.geometry, s.mask)
            for k, s in enumerate(samples)
        ]

    def _cached(self, indices: range) -> list[Encoded]:
        out = []
        for i in indices:
            first, count = self._offsets[self._items[self.item(i)].id]
            variant = int(self._ctx.numpy_random("augment", i).integers(count))
            out.append(self._stored(first + variant))
        return out

    def _stored(self, number: int) -> Encoded:
        assert self._moments is not None
        row = self._moments.row(number)
        geometry = unpack_geometry(row["geometry"])
        return Encoded(row["mean"], row.get("std"), geometry, row.get("mask"))

    def _with_class_rows(
        self, rows: list[PriorRow], indices: range, latents: Tensor, draw: Draw, stream: str
    ) -> tuple[Tensor, Draw]:
        per_instance = len(rows) // len(indices)
        owner = [k // per_instance for k in range(len(rows))]
        c, h, w = latents.shape[1:]
        fresh = self._schedule.draw(
            (c, h, w),
            [
                self._ctx.random(stream, indices[owner[k]], k % per_instance)
                for k in range(len(rows))
            ],
        )
        z, t, noise = [], [], []
        for k, row in enumerate(rows):
            mirrored = row.latents is None
            if row.latents is not None and row.latents.shape != latents.shape[1:]:
                have, want = list(row.latents.shape), list(latents.shape[1:])
                fault = f"returned a row with latents {have} where instance rows have {want}"
                raise refused(self._prior, "rows", fault)
            drawn = latents[owner[k]] if row.latents is None else row.latents.float()
            z.append(upload(drawn, latents.device))
            t.append(draw.t[owner[k]] if mirrored else fresh.t[k])
            noise.append(draw.noise[owner[k]] if mirrored else fresh.noise[k])
        return torch.cat([latents, torch.stack(z)]), type(draw)(
            torch.cat([draw.t, torch.stack(t)]), torch.cat([draw.noise, torch.stack(noise)])
        )


def variant_offsets(data: DataSource, items: Sequence[Item]) -> dict[str, tuple[int, int]]:
    """Return item id -> (first row, variants) in the moments entry."""
    offsets, first = {}, 0
    for item in items:
        count = data.variants(item) or 1
        offsets[item.id] = (first, count)
        first += count
    return offsets
