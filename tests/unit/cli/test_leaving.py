"""A thread that a plugin left behind is told and does not keep the program alive."""

from __future__ import annotations

import subprocess
import sys
import threading

from dreambooth.cli import describe_thread as describe

PROGRAM = """
import sys, threading, time
from dreambooth import cli as leaving

leaving.PATIENCE = 0.2
before = threading.enumerate()
threading.Thread(target=time.sleep, args=({seconds},), name="upload").start()
print("done", flush=True)
leaving.leave(3, before)
"""


def leave_with(seconds):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(seconds=seconds)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_thread_that_does_not_end_is_told_and_left():
    done = leave_with(1000)
    assert done.returncode == 3
    assert done.stdout == "done\n"
    assert 'warning: thread "upload" is still running 0.2 s after the end' in done.stderr


def test_one_that_ends_is_waited_for():
    done = leave_with(0.05)
    assert done.returncode == 3
    assert done.stderr == ""


def test_the_plugin_is_named_by_what_its_thread_runs(monkeypatch):
    from dreambooth.plugins import faults

    mine = 'plugin "mine" (my-pkg 0.1.0)'
    monkeypatch.setattr(faults, "owner_of", {__name__: mine}.get)
    told = describe(threading.current_thread(), sys._getframe())
    assert told.startswith(f'thread "MainThread" of {mine} ({__file__}:')
