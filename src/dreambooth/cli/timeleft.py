"""How long training goes on: steps that are left, and the pauses between them.

Steps and pauses (samples, evaluations) are timed apart. What a pause takes is known once there
was one; until then it is taken from the plan's price.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dreambooth.engine.plan import Plan
    from dreambooth.job import Job

WARMING_UP = 2
"""First steps of a process, which allocate and compile: left out as soon as there are others."""
RECENT = 200
"""Steps that tell the speed: a machine's may change during a run."""
OVERHEAD = 0.025
"""Seconds that a forward of a UNet takes before its size counts: about as much on any machine, as
it is Python's. In small models most of a step, and much less of a forward of many pictures."""
FORWARDS_A_PASS = 3
"""A forward, its backward and its share of the update have the overhead of so many forwards."""
SHARE_OF_SIZE = 0.2
"""Of a step, at least what its size takes, whatever the overhead."""


@dataclass(frozen=True)
class Pause:
    """Work between steps that comes again and again."""

    every: int
    last: int
    """The run's last step, after which it comes too."""
    steps: float
    """The plan's price of one, in training steps that have no overhead."""
    forwards: int
    """Forwards of one."""
    step_forwards: int = FORWARDS_A_PASS
    """Forwards whose overhead a training step has."""

    def is_due(self, step: int) -> bool:
        """Say whether it comes after this step."""
        return bool(self.every) and (step % self.every == 0 or step == self.last)

    def count(self, done: int) -> int:
        """Return how often it still comes after step `done`."""
        if not self.every or done >= self.last:
            return 0
        return -(-self.last // self.every) - done // self.every


def pauses_of(job: Job, plan: Plan) -> tuple[Pause, ...]:
    """Return a run's pauses, priced by its plan."""
    last, of_step = job.train.steps, FORWARDS_A_PASS * job.train.accumulation
    pictures = len(job.samples.prompts) * job.samples.per_prompt
    samples = Pause(
        job.samples.every,
        last,
        plan.sample_steps * pictures / max(plan.sample_pictures, 1),
        -(-pictures // job.samples.batch_size) * job.sampler.sampling_steps(),
        of_step,
    )
    validation = Pause(
        job.validation.every,
        last,
        plan.evaluation_steps / max(plan.evaluations, 1),
        -(-plan.evaluation_rows // job.validation.batch_size),
        of_step,
    )
    return samples, validation


class TimeLeft:
    """Watches steps end, and tells speed and time left."""

    def __init__(
        self,
        start: int,
        steps: int,
        pauses: Sequence[Pause] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps, self._pauses, self._clock = steps, tuple(pauses), clock
        self._step, self._at = start, clock()
        self._warm_up: list[float] = []
        self._plain: deque[float] = deque(maxlen=RECENT)
        self._took: dict[Pause, list[float]] = {}

    def ended(self, step: int) -> None:
        """Take note that a step has ended, with all that came after it."""
        now = self._clock()
        took, self._at, self._step = now - self._at, now, step
        if due := [p for p in self._pauses if p.is_due(step)]:
            expected = {p: self._seconds(p) for p in due}
            for pause, share in expected.items():  # of several at once, each by what was expected
                part = share / sum(expected.values()) if any(expected.values()) else 1 / len(due)
                of_pauses = max(took - self.step_seconds, 0.0)
                self._took.setdefault(pause, []).append(part * of_pauses)
        elif len(self._warm_up) < WARMING_UP:
            self._warm_up.append(took)
        else:
            self._plain.append(took)

    @property
    def step_seconds(self) -> float:
        """Return what a step takes without pauses; 0 until there was one."""
        told = self._plain or self._warm_up
        return fmean(told) if told else 0.0

    def seconds(self) -> float | None:
        """Return the seconds until the last step has ended; None while nothing is known."""
        if not self.step_seconds:
            return None
        steps = (self._steps - self._step) * self.step_seconds
        return steps + sum(p.count(self._step) * self._seconds(p) for p in self._pauses)

    def _seconds(self, pause: Pause) -> float:
        if took := self._took.get(pause):
            return fmean(took)
        overhead = min(OVERHEAD, (1 - SHARE_OF_SIZE) * self.step_seconds / pause.step_forwards)
        of_size = self.step_seconds - overhead * pause.step_forwards
        return pause.steps * of_size + pause.forwards * overhead
