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

SMALLEST_SCALE = 2.0**-10
"""A loss scaler that got here has halved its scale in dozens of steps without one update."""
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
