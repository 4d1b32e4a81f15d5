"""Which step of a run came out best, from numbers alone: one rule for commands and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    Measured = tuple[float, float]
    """A mean and its standard error."""


def obeying(free: Mapping[int, Measured]) -> list[int]:
    """Return the steps whose prompt alignment is within two standard errors of the best one's.

    Of the difference: the errors of both are taken together.
    """
    best, error = max(free.values(), default=(0.0, 0.0))
    return [
        step
        for step, (value, own) in free.items()
        if value >= best - 2 * (own**2 + error**2) ** 0.5
    ]


def best_step(like: Mapping[int, Measured], free: Mapping[int, Measured]) -> int | None:
    """Return the step most like the subject among those that still obey the prompts.

    `like` is subject similarity by step, `free` prompt alignment; where that was not measured, all
    steps count as obeying. None where no step is left.
    """
    left = [step for step in (obeying(free) if free else like) if step in like]
    return max(left, key=lambda step: like[step][0], default=None)
