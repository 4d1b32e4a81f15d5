"""The job's callbacks and its early-stop rule: opened, asked, and kept in checkpoints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dreambooth.errors import RunError
from dreambooth.plugins.faults import defined, is_ours, plugin_fault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import Callback, Observer, RunView, Save, Stop
    from dreambooth.interfaces.callback import Event
    from dreambooth.job import Job


SLOW_SECONDS, SLOW_SHARE = 5.0, 0.1
"""An observer that took so long in all, and such a share of the time, is named."""


def watching(job: Job) -> list[Callback]:
    """Return who is told of events, in order: the callbacks, then what decides when to stop."""
    return [*job.callbacks, *([job.early_stop] if job.early_stop else [])]


class Observers:
    """All of them, opened. Every process asks its own; what counts are the main one's answers."""

    def __init__(self, ctx: EngineContext) -> None:
        self._ctx = ctx
        self._opened: list[tuple[Callback, Observer]] = [
            (callback, callback.open(ctx)) for callback in watching(ctx.job)
        ]
        self._asked = [observer for _, observer in self._opened]
        self._began = time.monotonic()
        self._spent: dict[Observer, tuple[int, float]] = {}
        self.failure: BaseException | None = None
        """What one of them raised. It is not asked again, and the run ends with it once the step
        is done and saved."""

    def __iter__(self) -> Any:
        """Yield the observers in their order."""
        return iter([observer for _, observer in self._opened])

    def ask(self, event: Event, view: RunView) -> list[Save | Stop]:
        """Tell all of an event; return their answers in order, the same in every process."""
        answers: list[Save | Stop] = []
        for observer in list(self._asked):
            start = time.monotonic()
            try:
                answer = observer.on(event, view)
            except (Exception, SystemExit) as error:
                self._asked.remove(observer)
                self.failure = self.failure or error
            else:
                answers += [answer] if answer is not None else []
                self._took(observer, time.monotonic() - start)
        return self._agreed(answers)

    def _took(self, observer: Observer, seconds: float) -> None:
        """Name an observer that makes the run wait; `warn` says the same words once."""
        count, before = self._spent.get(observer, (0, 0.0))
        count, spent = count + 1, before + seconds
        passed = time.monotonic() - self._began
        if spent > SLOW_SECONDS and spent > SLOW_SHARE * passed:
            self._ctx.warn(
                f"{defined(observer, 'on')} is slow: {spent / count:.2g} s an event, "
                f"{spent / passed:.0%} of the time since the run began"
            )
            spent = float("-inf")  # said once, whatever comes
        self._spent[observer] = (count, spent)

    def _agreed(self, answers: list[Save | Stop]) -> list[Save | Stop]:
        """Take the main process's answers, and notice where another one's observer failed.

        A pair of numbers is exchanged an event, the answers only where there are any.
        """
        devices = self._ctx.devices
        if devices is None or devices.world_size == 1 or not self._opened:
            return answers
        mine = [int(bool(answers) and self._ctx.is_main), int(self.failure is not None)]
        some, failed = devices.largest(mine)
        if failed and self.failure is None:
            self.failure = RunError(
                "a callback failed in another process of this run", "see what that process said"
            )
        return devices.share(answers) if some else []

    def raise_failure(self) -> None:
        """Raise what one of them raised."""
        if self.failure is not None:
            raise self.failure

    def states(self) -> list[dict[str, Any]]:
        """Return each one's state with its kind, as JSON data."""
        try:
            return [{"kind": c.kind, "state": observer.state()} for c, observer in self._opened]
        except Exception:
            self.raise_failure()  # which came first, and may be why
            raise

    def load(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Give each its state back: the first saved one of its kind that nobody has taken.

        The list of callbacks may change between two lives of a run, so places say nothing.
        """
        left = list(saved)
        for callback, observer in self._opened:
            mine = next((entry for entry in left if entry.get("kind") == callback.kind), None)
            if mine is not None:
                left.remove(mine)
                _give_back(callback, observer, mine["state"])


def _give_back(callback: Callback, observer: Observer, state: Mapping[str, Any]) -> None:
    """Let an observer load its state. One of ours wrote what it can read, so that the checkpoint
    is to blame; of others nobody knows."""
    try:
        observer.load_state(state)
    except (Exception, SystemExit) as error:
        fault = plugin_fault(error)
        if fault is None or is_ours(callback):
            raise
        fault.hint += "; this is the state that the checkpoint keeps of it"
        raise fault from error
