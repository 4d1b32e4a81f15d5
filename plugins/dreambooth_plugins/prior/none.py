"""No prior preservation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth.interfaces import NoPrior, Prior

if TYPE_CHECKING:
    from dreambooth.interfaces import Context, LoadedModel, NoiseSchedule, PriorSet, Sampler


class NonePrior(Prior):
    """Train on the instance images alone: faster, and the class drifts towards the subject."""

    kind: Literal["none"] = "none"

    def open(
        self, ctx: Context, model: LoadedModel, sampler: Sampler, schedule: NoiseSchedule
    ) -> PriorSet:
        """Return a set without rows."""
        return NoPrior()

    def has_rows(self) -> bool:
        """There are none."""
        return False
