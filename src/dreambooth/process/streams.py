"""Standard streams that never fail: what cannot be printed is not worth a run."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dreambooth.process.signals import asked_to_stop

PIECE = 4096
"""Bytes a pipe takes without waiting, once it says that it has room."""
PATIENCE = 0.25
"""Seconds between two looks at whether a reader that does not read is still worth waiting for."""


@dataclass
class _State:
    closed: set[str] = field(default_factory=set)
    """Standard streams that were closed when the program started."""
    told: set[str] = field(default_factory=set)
    """Streams of which a log knows that they are quiet."""
    displays: bool = False
    """Whether what is printed is there for the eye only."""


_state = _State()


class _Guarded(io.FileIO):
    """A standard stream's file: what cannot be written is dropped, and the reason kept."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.fileno(), "w", closefd=False)
        self.name = stream.name
        self.failure: OSError | None = None
        self._kept = stream  # its end would close the file

    def write(self, data: Any) -> int:
        """Write all the bytes, or drop what is left of them."""
        left = memoryview(data)
        size = len(left)
        try:
            while left and _has_room(self.fileno()):
                # None: somebody who shares the file made it non-blocking, and it is full again.
                left = left[super().write(left[:PIECE]) or 0 :]
        except OSError as error:
            self.failure = self.failure or error
        return size


def _has_room(file: int) -> bool:
    """Wait until a stream can be written; False where nobody reads it and a stop was asked for."""
    if sys.platform == "win32":  # select knows sockets only
        return True
    import select

    while not select.select([], [file], [], PATIENCE)[1]:
        if asked_to_stop():
            return False
    return True


def guard_streams() -> None:
    """Let `sys.stdout` and `sys.stderr` never fail, and show what they cannot encode by escapes.

    A stream that was closed leads nowhere from here on, so that no file of a run takes its number
    and is written to by a library that prints. Streams that somebody put in the place of the real
    ones (tests, notebooks) stay.
    """
    _state.closed.clear()
    _state.displays = False
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            _state.closed.add(name)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _guarded(stream))


def _guarded(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    buffer: Any = stream.buffer
    if (
        type(stream) is not io.TextIOWrapper
        or type(getattr(buffer, "raw", buffer)) is not io.FileIO
    ):
        stream.reconfigure(errors="backslashreplace")
        return stream
    with suppress(OSError):
        stream.flush()
    raw = _Guarded(stream)
    return io.TextIOWrapper(
        raw if buffer is getattr(buffer, "raw", buffer) else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def only_displays() -> None:
    """Say that this command's result is in files: that what it printed was lost is no failure."""
    _state.displays = True


def stdout_failure() -> OSError | None:
    """Return why a command whose result is what it prints has failed, or None."""
    return None if _state.displays else failure("stdout")


def failure(name: str) -> OSError | None:
    """Return why `stdout` or `stderr` could not be written, or None."""
    if name in _state.closed:
        return OSError(errno.EBADF, os.strerror(errno.EBADF))
    buffer = getattr(getattr(sys, name), "buffer", None)
    found = getattr(getattr(buffer, "raw", buffer), "failure", None)
    return found if isinstance(found, OSError) else None


def newly_quiet() -> list[str]:
    """Return a line for each stream that went quiet since the last call, for the run's log."""
    lost = {name: failure(name) for name in ("stdout", "stderr") if name not in _state.told}
    lines = [
        f"{name} cannot be written ({e.strerror}); this log goes on"
        for name, e in lost.items()
        if e
    ]
    _state.told.update(name for name, error in lost.items() if error)
    return lines
