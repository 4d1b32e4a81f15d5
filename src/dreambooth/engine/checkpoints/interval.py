"""Checkpoints by the clock: often enough that little is lost, seldom enough to cost little."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dreambooth.engine.devices.processes import Agreement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dreambooth.engine.devices.processes import Devices
    from dreambooth.job import Job

SHARE = 0.02
"""Of the time, at most what writing checkpoints may take."""
LONGEST = 15 * 60.0
"""Seconds of work that may be lost, whatever a checkpoint costs."""
GUESS = 100e6
"""Bytes a second that a disk and a SHA-256 are taken to manage until a checkpoint was timed."""


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
