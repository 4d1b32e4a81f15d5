"""Stop a run after so many minutes, with its work saved."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dreambooth import Callback
from dreambooth.interfaces import Observer, RunView, Save, Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from dreambooth.interfaces import Context, Event


class TimeLimit(Callback):
    """End the run after the first step past a time limit; a checkpoint and the export follow.

    The time counts from the first step of this process, so set-up is not in it, and the same
    command given again goes on from the checkpoint with the full time. Leave room before a
    cluster's own limit: one step, the last samples, the checkpoint and the export come on top.
    """

    kind: Literal["time_limit"] = "time_limit"
    minutes: float = Field(gt=0.0)
    """Minutes of training one process may do."""

    def open(self, ctx: Context) -> Observer:
        """Start the clock."""
        share = _slowest(ctx) if ctx.world_size > 1 else None
        return TimeLimitObserver(self.minutes * 60.0, share=share)


class TimeLimitObserver(Observer):
    """Watches the clock from the `start` event on.

    `clock` returns seconds; `share` turns this process's seconds into one number all processes
    agree on (None: there is only one process).
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        share: Callable[[float], float] | None = None,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._share = share
        self._begun = clock()

    def on(self, event: Event, view: RunView) -> Save | Stop | None:
        """Ask for the end at the first step past the limit."""
        if event == "start":
            self._begun = self._clock()
        if event != "step":
            return None
        elapsed = self._clock() - self._begun
        if self._share is not None:
            elapsed = self._share(elapsed)
        if elapsed < self._seconds:
            return None
        return Stop(f"the time limit of {self._seconds / 60.0:g} minutes is used up")


def _slowest(ctx: Context) -> Callable[[float], float]:
    """Return the maximum over processes: clocks differ, but all must stop at the same step."""
    import torch

    def share(elapsed: float) -> float:
        mine = torch.tensor([elapsed], dtype=torch.float32, device=ctx.device)
        return float(ctx.gather(mine).max())

    return share
