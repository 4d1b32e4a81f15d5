"""Numbers that are not finite: whose they are; stop, or pass the step over and name the rows.

What plugins computed for a first step is looked at once: values would have to be waited for on a
GPU. Later steps are watched by their losses and gradients, which cannot tell whose fault it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dreambooth.errors import RunError
from dreambooth.plugins.faults import refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.engine.batches import Batch
    from dreambooth.engine.session import Session

SMALLEST_SCALE = 2.0**-10
"""A loss scaler that got here has halved its scale in dozens of steps without one update."""
HINT = "lower optimizer.lr, or use train.precision: fp32; checkpoints written before are intact"
NOT_FINITE = "returned numbers that are not finite"


def require_answers(
    s: Session, batch: Batch, z_t: Tensor, target: Tensor, pred: Tensor, rows: Tensor
) -> None:
    """Name the plugin that made numbers which are not finite out of ones that were.

    What the network predicts is left out: precision or learning rate may be to blame.
    """
    if s.answers_are_finite:
        return
    s.answers_are_finite = True
    class_latents = batch.latents[batch.is_prior]
    for owner, method, made, given in (
        (s.prior, "rows", class_latents, ()),
        (s.schedule, "draw", batch.draw.noise, ()),
        (s.schedule, "add_noise", z_t, (batch.latents, batch.draw.noise)),
        (s.schedule, "target", target, (batch.latents, batch.draw.noise)),
        (s.job.loss, "rows", rows, (pred, target)),
    ):
        if not finite(made) and all(map(finite, given)):
            raise refused(owner, method, NOT_FINITE)


def finite(tensor: Tensor) -> bool:
    """Say whether all numbers are finite."""
    return bool(tensor.isfinite().all())


def bad_rows(batch: Batch, rows: Tensor) -> list[str]:
    """Name the rows whose loss [B] is not finite: image and timestep."""
    finite = torch.isfinite(rows).tolist()
    return [
        f"{batch.ids[i]} (timestep {float(batch.draw.t[i]):g})"
        for i, ok in enumerate(finite)
        if not ok
    ]


def require(s: Session, batch: Batch, rows: Tensor) -> None:
    """Stop the run with a `RunError` where a row's loss [B] is not finite."""
    if not torch.isfinite(rows).all():
        named = ", ".join(bad_rows(batch, rows))
        raise RunError(f"the loss is not finite at step {s.state.step + 1}: {named}", HINT)


def losses_are_finite(s: Session, seen: Sequence[tuple[Batch, Tensor]]) -> bool:
    """Say whether every row's loss of a step is finite, in every process."""
    fine = all(bool(torch.isfinite(rows).all()) for _, rows in seen)
    return all(s.ctx.devices.join([fine])) if s.ctx.devices is not None else fine


def check_scale(s: Session) -> None:
    """Stop a float16 run whose gradients overflow at any scale: nothing would ever train."""
    scaler = s.state.scaler
    if scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE:
        raise RunError(
            f"gradients overflow float16 at step {s.state.step}, however small the loss is scaled",
            "use train.precision: bf16 or fp32",
        )


def passes_over(s: Session, seen: Sequence[tuple[Batch, Tensor]], norm: Tensor) -> bool:
    """Say whether `train.nonfinite: skip` leaves this step's update out, and tell the person.

    Decided by the norm of the summed gradients, which is the same number in every process.
    `RunError` after `train.nonfinite_limit` such steps in a row. In float16 gradients overflow
    while the loss scaler finds its scale, and it skips these by itself: only steps whose loss is
    not finite count here.
    """
    if s.job.train.nonfinite != "skip":
        return False
    if torch.isfinite(norm):
        s.state.skipped = 0
        return False
    if s.state.scaler.is_enabled() and losses_are_finite(s, seen):
        return False
    s.state.skipped += 1
    named = [name for batch, rows in seen for name in bad_rows(batch, rows)]
    if s.ctx.devices is not None:
        named = s.ctx.devices.join(named)
    where = ", ".join(named) or "none of the losses, only the gradients"
    step, limit = s.state.step + 1, s.job.train.nonfinite_limit
    if s.state.skipped > limit:
        raise RunError(f"{limit + 1} steps in a row are not finite; step {step}: {where}", HINT)
    s.ctx.warn(f"step {step} is not finite and is skipped: {where}")
    return True
