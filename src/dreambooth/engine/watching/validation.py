"""The loss on one fixed batch: it moves only when the weights do.

Images, VAE noise, noise and timesteps are drawn once from (seed, "validation", row). The training
loss of single steps says little, since its timesteps differ; this one shows when learning levels
off (Voronov et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import fsum
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.batches import Batch, Instances
from dreambooth.engine.reporting import late_progress
from dreambooth.engine.results.samples import evaluating
from dreambooth.engine.step import condition, reference_prediction
from dreambooth.engine.watching.stopping import LeftOut
from dreambooth.errors import JobError
from dreambooth.helpers.random import derive, kept_generators
from dreambooth.helpers.transfer import upload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from dreambooth.engine.session import Session
    from dreambooth.interfaces import Item
    from dreambooth.job import Job


NONE = -1
"""In place of a row: this process was asked to stop and has none."""


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


def is_due(job: Job, step: int) -> bool:
    """Say whether to evaluate after this step."""
    every = job.validation.every
    return bool(every) and (step % every == 0 or step == job.train.steps)


def evaluations(job: Job) -> int:
    """Return how often a whole run evaluates: before the first step, on the way, at the end."""
    every = job.validation.every
    return 1 + -(-job.train.steps // every) if every else 0


class Validation:
    """A run's fixed batch and the loss on it."""

    def __init__(self, s: Session) -> None:
        vae = set(s.model.info.part_names("vae"))
        self._encoder_trains = any(name.split(".", 1)[0] in vae for name in s.state.parameters)
        self._batch = fixed_batch(s)

    @torch.no_grad()
    def losses(self, s: Session, look: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return `validation/loss_instance`, `.../loss_class` (with class rows) and `.../loss`.

        Plain mean squared errors, each a mean over its rows: no mask, no timestep weights, no
        caption dropout, whatever the training loss does. `validation/loss` is the instance loss
        plus the loss's `class_weight()` times the class loss. Evaluated with the weights that
        previews use (the average, where there is one). Several processes share the rows, and all
        of them get the same numbers. `look` is called before each batch; where it raises
        `LeftOut` in one process, this raises it in all of them.
        """
        if self._encoder_trains:
            self._batch = fixed_batch(s)
        batch = self._batch
        with kept_generators(s.ctx.device), s.state.showing_result(), evaluating(s.model):
            torch.manual_seed(derive(s.job.train.seed, "validation"))
            rows = self._rows(s, batch, look)
        prior = batch.is_prior.tolist()
        halves = [[rows[i] for i in range(len(rows)) if prior[i] is half] for half in (False, True)]
        instance, of_class = (fsum(half) / len(half) if half else 0.0 for half in halves)
        values = {
            "validation/loss": instance + s.job.loss.class_weight() * of_class,
            "validation/loss_instance": instance,
        }
        return values | ({"validation/loss_class": of_class} if halves[1] else {})

    def _rows(self, s: Session, batch: Batch, look: Callable[[], None]) -> list[float]:
        """Return each row's loss, this process's share of them computed here."""
        mine = range(s.ctx.rank, len(batch.ids), s.ctx.world_size)
        size = s.job.validation.batch_size
        found: list[tuple[int, float]] = []
        try:
            with late_progress(s.ctx.reporter, "Validating", len(mine)) as progress:
                for first in range(0, len(mine), size):
                    look()
                    part = mine[first : first + size]
                    found += zip(part, row_losses(s, select(batch, part)).tolist(), strict=True)
                    progress.advance(len(part))
        except LeftOut:
            found = [(NONE, 0.0)]  # the others wait to hear of it
        if s.ctx.devices is not None:
            found = s.ctx.devices.join(found)
        if any(row == NONE for row, _ in found):
            raise LeftOut
        return [loss for _, loss in sorted(found)]


def fixed_batch(s: Session) -> Batch:
    """Make the batch: row i shows image i mod n, at the i-th of evenly spread timesteps.

    Row i's VAE noise and noise come from one generator, in this order. Class row k goes with its
    instance row and has the same timestep; a mirrored one has its latents and noise, too.
    """
    count = s.job.validation.rows
    shown = (s.split.held_out or s.split.training)[:count]
    encoded = s.batches.plain(shown)
    owners = [i % len(shown) for i in range(count)]
    rngs = [s.ctx.random("validation", i) for i in range(count)]
    latents = torch.stack([encoded[k].mean for k in owners]).float()
    stds = [std for k in owners if (std := encoded[k].std) is not None]
    if stds:
        shape = latents.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=rng) for rng in rngs])
        latents = latents + torch.stack(stds) * upload(noise, latents.device)
    c, h, w = latents.shape[1:]
    draw = s.schedule.draw((c, h, w), rngs)
    spread = s.schedule.timestep_quantiles(count, s.ctx.random("validation-timesteps"))
    draw = replace(draw, t=spread)
    instances = Instances(
        range(count),
        latents,
        draw,
        [s.job.data.item_prompt(shown[k], s.job.subject) for k in owners],
        [encoded[k].geometry for k in owners],
        None,
        [shown[k].id for k in owners],
    )
    rows = s.prior.rows(range(count), 0)
    batch = s.batches.join(instances, rows, "validation-class")
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


def row_losses(s: Session, batch: Batch) -> Tensor:
    """Return [B] float32, each row's mean squared error over C, h, w.

    Towards the schedule's target; rows that train towards the frozen base's prediction are held
    to that here, too.
    """
    z_t = s.schedule.add_noise(batch.latents, batch.draw)
    target = s.schedule.target(batch.latents, batch.draw)
    if batch.wants_reference is not None and batch.wants_reference.any():
        reference = reference_prediction(s, batch, z_t)
        assert reference is not None
        target = torch.where(batch.wants_reference.view(-1, 1, 1, 1), reference, target)
    with s.ctx.autocast():
        cond = condition(s.model, batch.prompts, batch.geometry)
        pred = s.model.denoise(z_t, batch.draw.t, cond).float()
    return (pred - target).square().flatten(1).mean(1)
