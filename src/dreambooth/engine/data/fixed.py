"""What validation looks at: which images are held out, and one fixed batch.

Images, VAE noise, noise and timesteps of the batch are drawn once from (seed, "validation", row).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.batches import Batch, Instances
from dreambooth.errors import JobError
from dreambooth.helpers.random import derive
from dreambooth.helpers.transfer import upload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.engine.batches import Batches
    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import Item, NoiseSchedule, PriorSet
    from dreambooth.job import Job


@dataclass(frozen=True)
class Split:
    """Instance images: those that train, and those that never do. Both in the scan's order."""

    training: tuple[Item, ...]
    held_out: tuple[Item, ...] = ()


def split(job: Job, items: Sequence[Item]) -> Split:
    """Hold `validation.holdout` images out, chosen by (seed, content); `JobError` if none is left.

    By content, so that copies of one picture stay on one side, and a new one moves no other.
    """
    wanted = job.validation.holdout
    contents = sorted({item.sha256 for item in items})
    count = wanted if isinstance(wanted, int) else round(wanted * len(contents))
    count = max(count, 1) if wanted else 0
    if count >= len(contents):
        raise JobError(
            f"validation.holdout: holding {count} of {len(contents)} different pictures out "
            "leaves none to train on",
            "hold fewer out; with 0 the fixed batch is made of the pictures that train",
        )
    contents.sort(key=lambda content: derive(job.train.seed, f"holdout:{content}"))
    chosen = set(contents[:count])
    return Split(
        tuple(item for item in items if item.sha256 not in chosen),
        tuple(item for item in items if item.sha256 in chosen),
    )


def fixed_batch(
    ctx: EngineContext,
    batches: Batches,
    schedule: NoiseSchedule,
    prior: PriorSet,
    images: Split,
) -> Batch:
    """Make the batch: row i shows image i mod n, at the i-th of evenly spread timesteps.

    Row i's VAE noise and noise come from one generator, in this order. Class row k goes with its
    instance row and has the same timestep; a mirrored one has its latents and noise, too.
    """
    job, count = ctx.job, ctx.job.validation.rows
    shown = (images.held_out or images.training)[:count]
    encoded = batches.plain(shown)
    owners = [i % len(shown) for i in range(count)]
    rngs = [ctx.random("validation", i) for i in range(count)]
    latents = torch.stack([encoded[k].mean for k in owners]).float()
    stds = [std for k in owners if (std := encoded[k].std) is not None]
    if stds:
        shape = latents.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=rng) for rng in rngs])
        latents = latents + torch.stack(stds) * upload(noise, latents.device)
    c, h, w = latents.shape[1:]
    draw = schedule.draw((c, h, w), rngs)
    spread = schedule.timestep_quantiles(count, ctx.random("validation-timesteps"), (h, w))
    draw = replace(draw, t=spread)
    instances = Instances(
        range(count),
        latents,
        draw,
        [job.data.item_prompt(shown[k], job.subject) for k in owners],
        [encoded[k].geometry for k in owners],
        None,
        [shown[k].id for k in owners],
    )
    rows = prior.rows(range(count), 0)
    batch = batches.join(instances, rows, "validation-class")
    t = torch.cat([spread, spread.repeat_interleave(len(rows) // count)])
    return replace(batch, draw=replace(batch.draw, t=t.to(batch.draw.t.device)))


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return some rows of a batch without masks."""
    device = batch.latents.device
    at = torch.tensor(list(rows), device=device)
    wants = batch.wants_reference
    asked = [k for k, i in enumerate(rows) if i in batch.reference_rows]
    return Batch(
        instances=sum(i < batch.instances for i in rows),
        latents=batch.latents[at],
        draw=replace(batch.draw, t=batch.draw.t[at], noise=batch.draw.noise[at]),
        prompts=[batch.prompts[i] for i in rows],
        reference_prompts=[batch.reference_prompts[i] for i in rows],
        geometry=[batch.geometry[i] for i in rows],
        is_prior=batch.is_prior[at],
        wants_reference=None if wants is None else wants[at],
        reference_rows=asked,
        reference_at=torch.tensor(asked, device=device) if asked else None,
        weight=batch.weight[at],
        mask=None,
        ids=[batch.ids[i] for i in rows],
    )
