"""Signals that ask a run for something: noted by handlers, heeded where nothing is half done."""

from __future__ import annotations

import atexit
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from queue import SimpleQueue

SAME_REQUEST = 0.5
"""Seconds within which signals count as one: a terminal and a scheduler may both send one."""


def numbers(*names: str) -> tuple[int, ...]:
    """Return the numbers of the signals that this system has."""
    return tuple(int(getattr(signal, name)) for name in names if hasattr(signal, name))


def stops() -> tuple[int, ...]:
    """Return the signals that ask a run to save and leave with 128 + their number."""
    return numbers("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2", "SIGBREAK")


def saves() -> tuple[int, ...]:
    """Return the signals that ask a run for a checkpoint, after which it goes on."""
    return numbers("SIGUSR1")


class Stopped(KeyboardInterrupt):
    """A signal ended work of which nothing has to be finished first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """What signals asked of this process so far."""

    def __init__(self) -> None:
        self.stop = 0
        """The first signal that asked for the end; 0 while none did."""
        self.raised = 0
        """The last one for which `Stopped` was raised; 0 while none was."""
        self._at = 0.0
        self._save = self._finishing = False
        self._tell: SimpleQueue[int] | None = None

    def __call__(self, number: int, frame: Any) -> None:
        """Take note of a signal; raise `Stopped` where nothing has to be finished.

        While work is being finished only a later Ctrl-C raises: schedulers repeat themselves, and
        a person who presses it again means it.
        """
        if number in saves():
            self._save = True
        elif self.stop:
            again = time.monotonic() - self._at >= SAME_REQUEST
            if again and (number == signal.SIGINT or not self._finishing):
                raise self._stopped(number)
            return
        else:
            self.stop, self._at = number, time.monotonic()
            if not self._finishing:
                raise self._stopped(number)
        if self._tell is not None:
            self._tell.put(number)  # which may be called from a handler

    def _stopped(self, number: int) -> Stopped:
        self.raised = number
        return Stopped(number)

    def again(self, number: int) -> None:
        """Send a signal once more, a moment later.

        What a handler raises while something is deleted Python writes to stderr and drops.
        """
        self.stop = self.raised = 0
        later = threading.Timer(0.01, signal.raise_signal, (number,))
        later.daemon = True
        later.start()

    def take_save(self) -> bool:
        """Say whether a checkpoint was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    @contextmanager
    def finishing(self, tell: Callable[[int], str] | None = None) -> Iterator[None]:
        """Only take notes within the block; a stop that nobody has seen to raises at its end.

        `tell` gives a line for the person, written to stderr at once: by a thread, since a handler
        may run in the middle of anything.
        """
        teller = _Teller(tell) if tell else None
        self._tell = teller.asked if teller else None
        self._finishing = True
        try:
            yield
        finally:
            self._finishing, self._tell = False, None
            if teller:
                teller.close()
        if self.stop:
            raise Stopped(self.stop)


class _Teller(threading.Thread):
    def __init__(self, tell: Callable[[int], str]) -> None:
        from queue import SimpleQueue

        super().__init__(name="signals", daemon=True)
        self.asked: SimpleQueue[int] = SimpleQueue()
        self._line = tell
        self.start()

    def run(self) -> None:
        while number := self.asked.get():
            with suppress(OSError, ValueError):  # somebody else's stream may be closed
                print(f"\n{self._line(number)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.asked.put(0)
        self.join(timeout=1.0)


_noting: list[Signals] = []
"""The notes being taken in this process, or none."""


def asked_to_stop() -> bool:
    """Say whether a signal has asked this process for the end."""
    return any(noted.stop for noted in _noting)


def raise_stopped() -> None:
    """Raise `Stopped` once more where something replaced it by an error of its own.

    For whoever is about to take an error for something else, a damaged file, and to go on without.
    """
    for noted in _noting:
        if noted.raised:
            raise Stopped(noted.raised)


@contextmanager
def noted_signals() -> Iterator[Signals]:
    """Take notes of signals within the block; inside another such block, in the same notes.

    What was ignored before (`nohup`, a background job) stays ignored, and handlers that somebody
    else installed for other signals than SIGINT and SIGTERM stay. Outside the main thread, which
    alone may install handlers, nothing is noted.
    """
    if _noting or threading.current_thread() is not threading.main_thread():
        yield _noting[0] if _noting else Signals()
        return
    found, hook = Signals(), sys.unraisablehook
    _noting.append(found)

    def dropped(what: Any) -> None:
        if isinstance(what.exc_value, Stopped):
            found.again(what.exc_value.number)
        else:
            hook(what)

    sys.unraisablehook = dropped
    always = numbers("SIGINT", "SIGTERM")
    taken = {
        n: handler
        for n in (*stops(), *saves())
        if _may_take(handler := signal.getsignal(n), n in always)
    }
    try:
        for number in taken:
            signal.signal(number, found)
        hold(False)
        yield found
    except Exception as error:
        # What a handler raises in the middle of C code, that may replace by an error of its own
        # ("could not determine the shape of ..."), which a reader of files takes for damage.
        if found.raised:
            raise Stopped(found.raised) from error
        raise
    finally:
        _noting.remove(found)
        sys.unraisablehook = hook
        for number, handler in taken.items():
            signal.signal(number, handler)


def _may_take(handler: Any, always: bool) -> bool:
    if handler in (signal.SIG_IGN, None):  # None: installed by something that is not Python
        return False
    return always or handler in (signal.SIG_DFL, _nothing)


def spare() -> None:
    """Let signals that ask for a checkpoint do nothing where no notes are taken of them.

    Their own action would end a program that has just finished its run, or is about to begin it.
    To the very end: Python brings back a signal's own action before it is gone. What was ignored,
    or has a handler, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in saves():
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _nothing)
            atexit.register(signal.signal, number, signal.SIG_IGN)


def _nothing(number: int, frame: Any) -> None:
    """Leave a request for a checkpoint where there is nothing to save."""


@contextmanager
def noting(*extra: str) -> Iterator[SimpleQueue[int]]:
    """Put the numbers of signals that come within the block into a queue; ignored ones stay so."""
    from queue import SimpleQueue

    came: SimpleQueue[int] = SimpleQueue()
    taken = {
        n: handler
        for n in (*stops(), *saves(), *numbers(*extra))
        if (handler := signal.getsignal(n)) not in (signal.SIG_IGN, None)
    }
    try:
        for number in taken:
            signal.signal(number, lambda number, frame: came.put(number))
        yield came
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def suspend(number: int) -> None:
    """Stop this process by a signal's own action (SIGTSTP's) until it is continued."""
    handler = signal.signal(number, signal.SIG_DFL)
    try:
        signal.raise_signal(number)
    finally:
        signal.signal(number, handler)


def hold(back: bool) -> None:
    """Hold the signals of a run back, in children that start meanwhile too, or let them through.

    A rank that is just starting would be ended by a signal it is to understand a moment later.
    """
    if hasattr(signal, "pthread_sigmask"):
        how = signal.SIG_BLOCK if back else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, (*stops(), *saves()))
