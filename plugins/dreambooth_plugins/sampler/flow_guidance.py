"""How predictions of flow-matching models are guided. Known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SolverName = Literal["euler", "dpmpp_2m"]
STANDS_STILL = 0.04
"""The share of the steps at whose beginning CFG-Zero* goes nowhere (arXiv:2503.18886)."""


@dataclass(frozen=True)
class FlowGuidance:
    """How strongly, and when, predictions follow the prompt."""

    scale: float = 1.0
    """Of true guidance; 1 is none."""
    embedded: float | None = None
    """What the network is given as an input; None where it takes none."""
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    zero_star: bool = False
    renormalised: bool = False
    """See `FlowSpec.renormalised`."""

    def at(self, s: float) -> bool:
        """Say whether the unconditional half is needed at this time."""
        if self.scale == 1.0:
            return False
        return self.interval is None or self.interval[0] < s <= self.interval[1]

    def still(self, step: int, steps: int) -> bool:
        """Say whether nothing moves in a step, counted from 0."""
        if not self.zero_star or self.scale == 1.0 or steps == 1:
            return False
        return step < max(1, round(STANDS_STILL * steps))
