"""Whether what plugins computed for a first step is finite: looked at once, then never again.

Types and shapes are checked at every call (`dreambooth.interfaces.answering`). Values would have to
be waited for on a GPU; later steps are watched by `nonfinite`, which cannot tell whose fault it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.plugins.faults import refused

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth.engine.batches import Batch
    from dreambooth.engine.session import Session

NOT_FINITE = "returned numbers that are not finite"


def require_finite(
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
