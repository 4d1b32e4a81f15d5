"""Leaving the program with its exit code, also where a thread would keep it alive."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

from dreambooth.console import print_warning

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import FrameType

PATIENCE = 5.0
"""Seconds that threads may go on once everything is done."""


def leave(code: int, before: Collection[threading.Thread]) -> NoReturn:
    """End the program; a thread that was not there `before` is waited for a moment, then told."""
    left = [t for t in threading.enumerate() if not t.daemon and t not in before]
    if left:
        threading.Thread(target=_end, args=(code, left), name="leaving", daemon=True).start()
    raise SystemExit(code)


def _end(code: int, left: Collection[threading.Thread]) -> None:
    threading.main_thread().join()  # from here on Python waits for the others, for ever
    deadline = time.monotonic() + PATIENCE
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    still = [thread for thread in left if thread.is_alive()]
    if not still:
        return
    frames = sys._current_frames()
    for thread in still:
        told = describe(thread, frames.get(thread.ident or 0))
        print_warning(f"{told} is still running {PATIENCE:g} s after the end: leaving without it")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def describe(thread: threading.Thread, frame: FrameType | None) -> str:
    """Return `thread "upload" of plugin "mine" (my-pkg 0.1.0), my_pkg/upload.py:12`."""
    from dreambooth.plugins.faults import owner_of

    stack: list[FrameType] = []
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    for one in reversed(stack):  # outermost first: what the thread was started for
        owner = owner_of(one.f_globals.get("__name__", ""))
        if owner is not None:
            plugin, where = owner, f"{one.f_code.co_filename}:{one.f_code.co_firstlineno}"
            return f'thread "{thread.name}" of {plugin} ({where})'
    return f'thread "{thread.name}"'
