"""End a run whose validation loss does not get better any more."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dreambooth import Callback

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreambooth import Job, Problem
    from dreambooth.interfaces import Context, ModelInfo, Observer


class Patience(Callback):
    """End the run after so many values in a row that are no better than the best before them.

    Use it as `early_stop`, with pictures held out (`validation.holdout`): what is trained on
    keeps getting better for as long as one trains.
    """

    kind: Literal["patience"] = "patience"
    metric: str = Field(default="validation/loss", min_length=1)
    """Any logged number. The training loss is a poor choice: single steps differ in timestep."""
    patience: Annotated[int, Field(ge=1)] = 5
    """How many values may pass without a better one."""
    min_delta: float = Field(default=0.0, ge=0.0)
    """By how much a value must be better to count."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a number that the job never logs."""
        from dreambooth_plugins.callback.curve import metric_problems

        yield from metric_problems(job, self, self.metric)

    def open(self, ctx: Context) -> Observer:
        """Begin with an empty curve."""
        from dreambooth_plugins.callback.curve import CurveObserver

        return CurveObserver(self.metric, self.reason)

    def reason(self, steps: Sequence[int], values: Sequence[float]) -> str:
        """Say why the run may end after these values; empty while it may not.

        The best value changes where v < best - min_delta (`mode: max`: v > best + min_delta).
        """
        sign = 1.0 if self.mode == "min" else -1.0
        best, at = math.inf, 0
        for number, value in enumerate(values):
            if sign * value < best - self.min_delta:
                best, at = sign * value, number
        if len(values) - 1 - at < self.patience:
            return ""
        return (
            f"{self.metric} did not get better {self.patience} times in a row; "
            f"the best was {sign * best:.4g} at step {steps[at]}"
        )
