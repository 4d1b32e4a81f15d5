"""Means with standard errors, of numbers that belong together by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CLUSTERS = 3
"""From so many prompts on, prompts are what varies: pictures of one prompt are no independent
draws."""


@dataclass(frozen=True)
class Mean:
    """A mean, its standard error (None where it cannot be known) and how many numbers went in."""

    value: float
    stderr: float | None
    n: int


def mean_of(values: Mapping[int, float], groups: Mapping[int, str]) -> Mean | None:
    """Return the mean of values and its standard error; None of no values.

    From `CLUSTERS` groups (prompts) on, the error is that of the mean of the groups' means,
    s / sqrt(g) with s the sample deviation of the g means; with fewer groups that of the values
    themselves. Groups count equally, as DreamBench's means do where each has as many pictures.
    """
    if not values:
        return None
    by_group: dict[str, list[float]] = {}
    for index, value in values.items():
        by_group.setdefault(groups[index], []).append(value)
    means = [sum(found) / len(found) for found in by_group.values()]
    value = sum(means) / len(means)
    return Mean(value, _error(means if len(means) >= CLUSTERS else [*values.values()]), len(values))


def _error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    middle = sum(values) / len(values)
    variance = sum((v - middle) ** 2 for v in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
