"""One logged number over the steps, and what an early-stop rule makes of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dreambooth.helpers.scalars import logged_at, never_logged
from dreambooth.interfaces import Observer, RunView, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dreambooth import Callback, Job, Problem
    from dreambooth.interfaces import Event

    Rule = Callable[[Sequence[int], Sequence[float]], str]
    """(steps, values), oldest first -> why the run may end; empty while it may not."""


class CurveObserver(Observer):
    """Collects one number and ends the run for good as soon as `rule` says why.

    The whole curve lies in the checkpoint: a rule stays a function of what was logged, and a
    changed one (more patience, say) judges the same curve on resume. Values that are not finite
    are left out.
    """

    def __init__(self, metric: str, rule: Rule) -> None:
        self._metric, self._rule = metric, rule
        self._steps: list[int] = []
        self._values: list[float] = []

    def on(self, event: Event, view: RunView) -> Stop | None:
        """Take a new value, and ask the rule; at `start`, ask it about what was there before."""
        if event == logged_at(self._metric):
            self._take(view)
        elif event != "start":
            return None
        reason = self._rule(self._steps, self._values)
        return Stop(reason, final=True) if reason else None

    def _take(self, view: RunView) -> None:
        value = view.scalars.get(self._metric, math.nan)
        again = bool(self._steps) and view.step <= self._steps[-1]
        # What is measured on the untrained base's pictures is no value to beat: drift is 0 there.
        untrained = view.step == 0 and self._metric.startswith("metric/")
        if math.isfinite(value) and not again and not untrained:
            self._steps.append(view.step)
            self._values.append(value)

    def state(self) -> dict[str, Any]:
        """Return the curve."""
        return {"metric": self._metric, "steps": self._steps, "values": self._values}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the curve back, where it is of the same number."""
        if state.get("metric") == self._metric:
            pairs = zip(state["steps"], state["values"], strict=True)
            curve = [(int(step), float(value)) for step, value in pairs]
            self._steps, self._values = [step for step, _ in curve], [value for _, value in curve]


def place(job: Job, callback: Callback) -> tuple[str | int, ...]:
    """Return where in a job a callback stands."""
    if job.early_stop is callback:
        return ("early_stop",)
    numbers = (i for i, other in enumerate(job.callbacks) if other is callback)
    return ("callbacks", next(numbers, 0))


def metric_problems(job: Job, callback: Callback, metric: str) -> Iterator[Problem]:
    """Report a number that the job never logs."""
    problem = never_logged(job, metric, (*place(job, callback), "metric"))
    if problem is not None:
        yield problem
