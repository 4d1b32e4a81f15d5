"""The loss on one fixed batch: it moves only when the weights do.

The training loss of single steps says little, since its timesteps differ; this one shows when
learning levels off (Voronov et al. 2023).
"""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.data.fixed import fixed_batch, select
from dreambooth.engine.reporting import late_progress
from dreambooth.engine.results.samples import evaluating
from dreambooth.engine.step import condition, reference_prediction
from dreambooth.engine.watching.stopping import LeftOut
from dreambooth.helpers.random import derive, kept_generators

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dreambooth.engine.batches import Batch
    from dreambooth.engine.session import Session
    from dreambooth.job import Job


NONE = -1
"""In place of a row: this process was asked to stop and has none."""


def is_due(job: Job, step: int) -> bool:
    """Say whether to evaluate after this step."""
    every = job.validation.every
    return bool(every) and (step % every == 0 or step == job.train.steps)


def evaluations(job: Job) -> int:
    """Return how often a whole run evaluates: before the first step, on the way, at the end."""
    every = job.validation.every
    return 1 + -(-job.train.steps // every) if every else 0


@torch.no_grad()
def losses(s: Session, look: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Return `validation/loss_instance`, `.../loss_class` (with class rows) and `.../loss`.

    Plain mean squared errors, each a mean over its rows: no mask, no timestep weights, no
    caption dropout, whatever the training loss does. `validation/loss` is the instance loss
    plus the loss's `class_weight()` times the class loss. Evaluated with the weights that
    previews use (the average, where there is one). Several processes share the rows, and all
    of them get the same numbers. `look` is called before each batch; where it raises
    `LeftOut` in one process, this raises it in all of them.
    """
    if s.fixed is None or s.trained_parts & set(s.model.info.part_names("vae")):
        s.fixed = fixed_batch(s.ctx, s.batches, s.schedule, s.prior, s.split)
    batch = s.fixed
    with kept_generators(s.ctx.device), s.state.showing_result(), evaluating(s.model):
        torch.manual_seed(derive(s.job.train.seed, "validation"))
        rows = rows_of(s, batch, look)
    prior = batch.is_prior.tolist()
    halves = [[rows[i] for i in range(len(rows)) if prior[i] is half] for half in (False, True)]
    instance, of_class = (fsum(half) / len(half) if half else 0.0 for half in halves)
    values = {
        "validation/loss": instance + s.job.loss.class_weight() * of_class,
        "validation/loss_instance": instance,
    }
    return values | ({"validation/loss_class": of_class} if halves[1] else {})


def rows_of(s: Session, batch: Batch, look: Callable[[], None]) -> list[float]:
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
