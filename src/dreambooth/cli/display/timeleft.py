"""How long training goes on: steps that are left, and the pauses between them.

Steps and pauses (samples, evaluations) are timed apart. What a pause takes is known once there
was one, in a fresh run before its first step; until then it is priced in steps.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dreambooth.engine.cost.plan import Plan
    from dreambooth.job import Job

WARMING_UP = 2
"""First steps of a process, which allocate and compile: left out as soon as there are others."""
RECENT = 200
"""Steps that tell the speed: a machine's may change during a run."""
OVERHEAD = {"cpu": 6e11, "": 2e14}
"""What a forward costs beside its rows, by device: so many parameters times pixels of a row. On a
CPU measured (the embedded base at 64 px pays for 15 rows, Stable Diffusion 1.5 at 512 px for
none), elsewhere an estimate: until the first pause only."""


@dataclass(frozen=True)
class Pause:
    """Work between steps that comes again and again."""

    every: int
    last: int
    """The run's last step, after which it comes too."""
    steps: float
    """What one is expected to cost, in training steps."""

    def is_due(self, step: int) -> bool:
        """Say whether it comes after this step."""
        return bool(self.every) and (step % self.every == 0 or step == self.last)

    def count(self, done: int) -> int:
        """Return how often it still comes after step `done`."""
        if not self.every or done >= self.last:
            return 0
        return -(-self.last // self.every) - done // self.every


def pauses_of(job: Job, plan: Plan) -> tuple[Pause, ...]:
    """Return a run's pauses, priced by what a forward costs: its rows, and a share of its own.

    That share is most of a small model's step and little of a forward of many pictures, so that
    counting rows alone, as the plan does, makes its samples too dear.
    """
    from dreambooth.engine.cost.plan import FORWARDS_A_STEP
    from dreambooth.jobs.samplers import drawn_together

    last, samples, validation = job.train.steps, job.samples, job.validation
    height, width = job.data.size
    size = max(part.parameters for part in plan.parts) * height * width
    own = OVERHEAD.get(plan.device.split(":")[0], OVERHEAD[""]) / size
    step = FORWARDS_A_STEP * job.train.accumulation * (own + plan.rows)
    drawing = 0.0
    for some in drawn_together(job, samples.entries) if samples.every else ():
        pictures = len(some.numbers) * samples.per_prompt
        calls = -(-pictures // samples.batch_size) * some.sampler.sampling_steps()
        drawing += pictures * some.area(job) * some.sampler.forwards() + calls * own
    evaluations = -(-plan.evaluation_rows // validation.batch_size)
    evaluating = plan.evaluation_rows + evaluations * own
    return (
        Pause(samples.every, last, drawing / step),
        Pause(validation.every, last, evaluating / step),
    )


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
        """Take note that a step has ended, with all that came after it.

        Step 0 is what comes before the first one: pauses alone.
        """
        now = self._clock()
        step_seconds = self.step_seconds if step else 0.0
        took, self._at, self._step = now - self._at, now, step
        if due := [p for p in self._pauses if p.is_due(step)]:
            # Of several at once, each by what was expected.
            expected = {p: self._seconds(p) or p.steps for p in due}
            for pause, share in expected.items():
                part = share / sum(expected.values()) if any(expected.values()) else 1 / len(due)
                of_pauses = max(took - step_seconds, 0.0)
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
        """Return the seconds until the last step has ended; None while nothing is known.

        Counts down during a pause too.
        """
        if not self.step_seconds:
            return None
        steps = (self._steps - self._step) * self.step_seconds
        left = steps + sum(p.count(self._step) * self._seconds(p) for p in self._pauses)
        due = (self._seconds(p) for p in self._pauses if p.is_due(self._step + 1))
        return left - min(self._clock() - self._at, self.step_seconds + sum(due), left)

    def _seconds(self, pause: Pause) -> float:
        took = self._took.get(pause)
        return fmean(took) if took else pause.steps * self.step_seconds
