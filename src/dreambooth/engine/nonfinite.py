"""Losses and gradients that are not finite: stop, or pass the step over, and name the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dreambooth.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.engine.batches import Batch
    from dreambooth.engine.session import Session

HINT = "lower optimizer.lr, or use train.precision: fp32; checkpoints written before are intact"


def bad_rows(batch: Batch, rows: Tensor) -> list[str]:
    """Name the rows whose loss [B] is not finite: image and timestep."""
    finite = torch.isfinite(rows).tolist()
    return [
        f"{batch.ids[i]} (timestep {int(batch.draw.t[i])})" for i, ok in enumerate(finite) if not ok
    ]


def require(s: Session, batch: Batch, rows: Tensor) -> None:
    """Stop the run with a `RunError` where a row's loss [B] is not finite."""
    if not torch.isfinite(rows).all():
        named = ", ".join(bad_rows(batch, rows))
        raise RunError(f"the loss is not finite at step {s.state.step + 1}: {named}", HINT)


def passes_over(s: Session, seen: Sequence[tuple[Batch, Tensor]], norm: Tensor) -> bool:
    """Say whether `train.nonfinite: skip` leaves this step's update out, and tell the person.

    Decided by the norm of the summed gradients, which is the same number in every process.
    `RunError` after `train.nonfinite_limit` such steps in a row. In float16 the loss scaler has
    its own way of skipping, which is part of finding the scale.
    """
    if s.job.train.nonfinite != "skip" or s.state.scaler.is_enabled():
        return False
    if torch.isfinite(norm):
        s.state.skipped = 0
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
