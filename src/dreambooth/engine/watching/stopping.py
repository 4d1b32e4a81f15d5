"""Being asked for something by a signal, alike on all processes of a run."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth import process
from dreambooth.engine.devices.processes import Agreement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.engine.devices.processes import Devices


class LeftOut(KeyboardInterrupt):
    """Work that can be done later was left, since a stop was asked for.

    Of KeyboardInterrupt's kind, so that a plugin through which it passes does not take it for a
    fault of its own.
    """


@dataclass(frozen=True)
class Asked:
    """What the processes agree on after a step."""

    stop: int = 0
    """The signal that asked for the end; 0 where none did."""
    save: bool = False
    """Whether a checkpoint was asked for."""


class StopRequest:
    """What signals asked of any process of the run."""

    def __init__(self, devices: Devices, signals: process.Signals) -> None:
        self._devices, self._signals = devices, signals
        self._agreement = Agreement(devices)
        self._settled = 0

    def agreed(self) -> Asked:
        """Return what any process was asked for, the same in all of them; call it once a step.

        Where there are several this answers one step late, so that nobody waits.
        """
        if self._settled:
            return Asked(self._settled)
        mine = 2 * self._signals.stop + int(self._signals.take_save())
        stop, save = divmod(self._agreement.largest(mine), 2)
        self._settled = stop
        return Asked(stop, bool(save))

    def settle(self) -> int:
        """Return the signal that asked any process for the end, as of now; all must call it."""
        if not self._settled:
            [self._settled] = self._devices.largest([self._signals.stop])
        return self._settled

    def before_leisure(self) -> None:
        """Raise `LeftOut` on all processes where one was asked for the end; all must call it."""
        if self.settle():
            raise LeftOut

    def look(self) -> None:
        """Raise `LeftOut` where this process was asked for the end."""
        if self._signals.stop:
            raise LeftOut


def told(number: int) -> str:
    """Return what a person is told at once, in the middle of a step."""
    name = signal.Signals(number).name
    if number in process.saves():
        return f"{name}: saving after this step"
    again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
    return f"{name}: stopping after this step and saving{again}"


@contextmanager
def stop_requests(devices: Devices) -> Iterator[StopRequest]:
    """Turn signals into requests for the block; a second Ctrl-C interrupts at once."""
    with process.noted_signals() as noted, noted.finishing(told if devices.is_main else None):
        yield StopRequest(devices, noted)
