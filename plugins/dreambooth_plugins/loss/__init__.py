"""Default losses."""

from __future__ import annotations

from dreambooth import Loss, hookimpl
from dreambooth_plugins.loss.dco import DCO
from dreambooth_plugins.loss.masked import Masked
from dreambooth_plugins.loss.prior_preservation import PriorPreservation
from dreambooth_plugins.loss.self_distilled_prior import SelfDistilledPrior


@hookimpl
def register_losses() -> list[type[Loss]]:
    """Bring the losses that come with the trainer."""
    return [DCO, Masked, PriorPreservation, SelfDistilledPrior]
