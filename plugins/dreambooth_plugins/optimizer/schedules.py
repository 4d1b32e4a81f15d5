"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from dreambooth import LRSchedule


def progress(step: int, steps: int) -> float:
    """Return how much of the run is done before optimizer step `step` (from 0), in 0..1."""
    return min(1.0, step / steps)


class Constant(LRSchedule):
    """The full learning rate throughout, after the warm-up."""

    kind: Literal["constant"] = "constant"

    def factor(self, step: int, steps: int) -> float:
        """Return 1."""
        return 1.0


class Linear(LRSchedule):
    """A straight line from the full learning rate down to `end_factor` of it.

    Step k of N, both counted after the warm-up, runs at `1 - (1 - end_factor) k / N`: the end
    value belongs to the moment after the last step, so that no step is spent at a rate of zero.
    """

    kind: Literal["linear"] = "linear"
    end_factor: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the learning rate that is reached at the end of the run."""

    def factor(self, step: int, steps: int) -> float:
        """Return the point on the line."""
        return 1.0 - (1.0 - self.end_factor) * progress(step, steps)

    def depends_on_end(self) -> bool:
        """More steps make the slope gentler."""
        return True


class Cosine(LRSchedule):
    """Half a cosine from the full learning rate down to `end_factor` of it, without restarts.

    Step k of N, both counted after the warm-up, runs at
    `end + (1 - end) (1 + cos(pi k / N)) / 2` (arXiv:1608.03983, one cycle).
    """

    kind: Literal["cosine"] = "cosine"
    end_factor: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the learning rate that is reached at the end of the run."""

    def factor(self, step: int, steps: int) -> float:
        """Return the point on the half cosine."""
        half = 0.5 * (1.0 + math.cos(math.pi * progress(step, steps)))
        return self.end_factor + (1.0 - self.end_factor) * half

    def depends_on_end(self) -> bool:
        """More steps stretch the curve."""
        return True
