"""When a checkpoint is written (by steps, by the clock), and which of them stay."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dreambooth.engine.devices.processes import Agreement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dreambooth.engine.devices.processes import Devices
    from dreambooth.job import Checkpoints, Job

SHARE = 0.02
"""Of the time, at most what writing checkpoints may take."""
LONGEST = 15 * 60.0
"""Seconds of work that may be lost, whatever a checkpoint costs."""
GUESS = 100e6
"""Bytes a second that a disk and a SHA-256 are taken to manage until a checkpoint was timed."""


def is_due(options: Checkpoints, step: int) -> bool:
    """Say whether a checkpoint is to be written after this step, whatever else asks for one."""
    counted = options.every != "auto" and step % options.every == 0
    return counted or is_for_good(options, step)


def is_for_good(options: Checkpoints, step: int) -> bool:
    """Say whether the checkpoint of a step is one that `keep_every` never gives away."""
    return options.keep_every is not None and step % options.keep_every == 0


def superseded(
    options: Checkpoints, steps: Sequence[int], written: int, best: int | None = None
) -> list[int]:
    """Return the steps whose checkpoints may go, now that the one of step `written` is whole.

    `steps` are those on disk, `best` is the step `keep_best` holds on to. Newer ones than
    `written` are of a life the run went back from: they are neither counted nor touched.
    """
    here = sorted(step for step in steps if step <= written)
    kept = {*here[-options.keep_last :], best}
    return [step for step in here if step not in kept and not is_for_good(options, step)]


class Pace:
    """Says when the next checkpoint of `checkpoints.every: auto` is due."""

    def __init__(
        self, job: Job, devices: Devices, trained: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`trained` counts the parameters that train, `clock` returns seconds."""
        self._by_clock, self._clock = job.checkpoints.every == "auto", clock
        self._is_main, self._agreement = devices.is_main, Agreement(devices)
        self._cost = checkpoint_bytes(job, [trained]) / GUESS
        self._since = clock()

    @property
    def interval(self) -> float:
        """Return the seconds from the end of one checkpoint to the beginning of the next."""
        return min(self._cost / SHARE, LONGEST)

    def is_due(self) -> bool:
        """Say whether one is to be written now, alike on every process; ask once a step."""
        if not self._by_clock:
            return False
        waited = self._is_main and self._clock() - self._since >= self.interval
        return bool(self._agreement.largest(int(waited)))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Learn from the checkpoint that is written in the block; the next is counted from it."""
        began = self._clock()
        yield
        self._since = self._clock()
        self._cost = self._since - began


def checkpoint_bytes(job: Job, sizes: Iterable[int]) -> int:
    """Return the bytes of a checkpoint of tensors of these sizes: weights, optimizer, average."""
    each = 4 + (4 if job.train.ema else 0)
    return sum(each * size + round(job.optimizer.state_bytes(size) * size) for size in sizes)
