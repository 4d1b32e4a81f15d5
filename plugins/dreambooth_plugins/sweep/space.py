"""The space as Optuna's distributions, the points of a grid, and the job that drawn values make."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.distributions import BaseDistribution

    from dreambooth_plugins.sweep.file import Axis

MAX_POINTS = 100_000


@dataclass(frozen=True)
class Dimension:
    """A key of the job and its values, with the type the job gives them."""

    key: str
    axis: Axis
    whole: bool
    """Whether a range is one of whole numbers: the job's key takes no others."""

    def ends(self) -> list[Any]:
        """Return the values that have to be right for all to be: all choices, or both ends."""
        if self.axis.choices is not None:
            return self.axis.choices
        assert self.axis.low is not None
        assert self.axis.high is not None
        return [number(self.axis.low, self.whole), number(self.axis.high, self.whole)]

    def points(self) -> list[Any]:
        """Return every value, for a grid; `JobError` for a range without end."""
        axis = self.axis
        if axis.choices is not None:
            return axis.choices
        assert axis.low is not None
        assert axis.high is not None
        step = axis.step or (1.0 if self.whole and not axis.log else None)
        if step is None:
            raise JobError(f"a grid needs values: space.{self.key} is a range without step")
        count = int((axis.high - axis.low) / step + 1e-9) + 1
        if count > MAX_POINTS:
            raise JobError(f"space.{self.key} has {count} values", "choose a longer step")
        return [number(axis.low + i * step, self.whole) for i in range(count)]

    def distribution(self) -> BaseDistribution:
        """Return what Optuna draws from; choices by their index, as they may be mappings."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        axis = self.axis
        if axis.choices is not None:
            return CategoricalDistribution([label(value) for value in axis.choices])
        assert axis.low is not None
        assert axis.high is not None
        high = axis.high
        if axis.step is not None:  # Optuna warns of an upper end that no step meets
            high = axis.low + int((axis.high - axis.low) / axis.step + 1e-9) * axis.step
        if not self.whole:
            return FloatDistribution(axis.low, high, log=axis.log, step=axis.step)
        return IntDistribution(int(axis.low), int(high), log=axis.log, step=int(axis.step or 1))


def number(value: float, whole: bool) -> int | float:
    """Return a number as the job's key takes it."""
    return int(value) if whole and value == int(value) else value


def label(value: Any) -> str:
    """Return a choice as the text by which Optuna and people know it: JSON."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def grid(space: list[Dimension]) -> list[dict[str, Any]]:
    """Return all points as what Optuna stores (labels of choices), the last key running fastest."""
    count = 1
    for dimension in space:
        count *= len(dimension.points())
    if count > MAX_POINTS:
        raise JobError(f"the grid has {count} points", "leave values out, or search at random")
    stored = [[label(v) if d.axis.choices is not None else v for v in d.points()] for d in space]
    keys = [d.key for d in space]
    return [dict(zip(keys, point, strict=True)) for point in itertools.product(*stored)]


def overrides(space: list[Dimension], drawn: Mapping[str, Any]) -> list[str]:
    """Return drawn values as `key=value` texts of `dbt run -o`, in the order of the space."""
    return [override(key, value) for key, value in meant(space, drawn).items()]


def meant(space: list[Dimension], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Optuna stores as the values of the job; keys not drawn yet are left out."""
    return {
        d.key: json.loads(drawn[d.key]) if d.axis.choices is not None else drawn[d.key]
        for d in space
        if d.key in drawn
    }


def override(key: str, value: Any) -> str:
    """Return `key=value`, the value as JSON, which YAML reads alike."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def readable(drawn: Mapping[str, Any]) -> str:
    """Return values for people: `optimizer.lr 0.00031, freezing adapter`."""
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in drawn.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items())
