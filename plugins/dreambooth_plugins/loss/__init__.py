"""Default losses."""

from __future__ import annotations

from dreambooth import Loss, hookimpl
from dreambooth_plugins.loss.prior_preservation import PriorPreservation


@hookimpl
def register_losses() -> list[type[Loss]]:
    """Bring `prior_preservation`."""
    return [PriorPreservation]
