"""Being asked to stop: the first signal saves and leaves, a second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dreambooth.engine.devices import Agreement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.engine.devices import Devices

SAME_REQUEST = 0.5
"""Seconds within which signals count as one: a launcher may pass on what the terminal sent too."""


class StopRequest:
    """Remembers the signal that asked for a stop."""

    def __init__(self, devices: Devices) -> None:
        self.signal = 0
        self._devices, self._at = devices, 0.0
        self._agreement = Agreement(devices)

    def __call__(self, number: int, frame: Any) -> None:
        """Take a signal: ask for a stop, or interrupt where that was asked before."""
        now = time.monotonic()
        if self.signal:
            if now - self._at < SAME_REQUEST:
                return
            raise KeyboardInterrupt
        self.signal, self._at = number, now
        if self._devices.is_main:
            # Not through the reporter: a handler may run in the middle of its printing.
            os.write(2, b"\nstopping after this step and saving; Ctrl-C again stops at once\n")

    def agreed(self) -> int:
        """Return the signal any process got, the same number in all of them; ask once a step."""
        return self._agreement.largest(self.signal)


@contextmanager
def stop_requests(devices: Devices) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once."""
    request = StopRequest(devices)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {n: signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
