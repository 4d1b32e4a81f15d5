"""A run in which nothing moves is said and ended; one that moves anywhere is left alone."""

from __future__ import annotations

import threading
import time
from typing import ClassVar

import pytest

from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.watching import hanging
from dreambooth.engine.watching.hanging import Fed, Watch
from dreambooth.interfaces import Callback, Observer
from dreambooth.runs.folder import RunFolder

LIMIT = 0.2


class Left:
    """Notes the error with which a watch would end the process, and lets the job's thread go."""

    def __init__(self):
        self.said = []
        self.event = threading.Event()

    def __call__(self, error):
        self.said.append(f"{error.message}\n{error.hint}")
        self.event.set()


class Store(dict):
    """torch's store, as far as a watch needs it."""

    def set(self, key, value):
        self[key] = value.encode()

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key]


@pytest.fixture
def left():
    return Left()


@pytest.fixture
def watch(left, tmp_path, monkeypatch):
    monkeypatch.setattr(hanging, "START", 0.0)
    return Watch(LIMIT, RunFolder(tmp_path / "run"), left)


def with_another(watch, store):
    """Tell a watch that there is a second process."""
    watch._store = store
    watch._processes[1] = hanging._Seen()
    return watch


def test_what_hangs_is_ended_and_the_place_is_named(watch, left):
    with watch:
        Fed(Quiet(), watch).step(12)
        assert left.event.wait(10)
    [said] = left.said
    assert "train.hang_timeout" in said
    assert "threading.py" in said  # where this thread waits
    assert "after step 12" in said
    assert "run the same command again" in said


def test_before_the_first_step_more_time_is_allowed(watch, left, monkeypatch):
    monkeypatch.setattr(hanging, "START", 60.0)
    with watch:
        assert not left.event.wait(3 * LIMIT)
        Fed(Quiet(), watch).step(1)
        assert left.event.wait(10)


@pytest.mark.parametrize("what", ["a unit of progress", "a part of a step", "a line"])
def test_whatever_shows_progress_counts_as_moving(watch, left, what):
    reporter = Fed(Quiet(), watch)
    with watch, reporter.progress("Drawing class images", 9) as bar:
        acts = {
            "a unit of progress": bar.advance,
            "a part of a step": watch.moved,
            "a line": lambda: reporter.info("a line"),
        }
        for _ in range(4):
            assert not left.event.wait(LIMIT / 2)
            acts[what]()
    assert left.said == []


def test_time_in_which_the_process_was_stopped_does_not_count(watch, left, monkeypatch):
    hours = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(hanging.time, "monotonic", lambda: next(hours))
    watch.limit = 2.0  # a look each tenth of a second
    with watch:
        time.sleep(0.35)
    assert left.said == []


def test_a_process_that_waits_is_patient_while_another_one_moves(watch, left):
    store = Store()
    with with_another(watch, store):
        for number in range(12):
            store.set(f"{hanging.PREFIX}/1", f"{number}\n{number}\nDrawing samples")
            assert not left.event.wait(LIMIT / 3)
        assert store[f"{hanging.PREFIX}/0"].decode().endswith("\n0\nthe beginning")
        assert left.event.wait(10)  # now it does not move either


def test_a_process_that_waits_lets_the_others_speak_first(watch, left, monkeypatch):
    monkeypatch.setattr(Watch, "_waits", lambda self: True)
    monkeypatch.setattr(hanging, "GRACE", 0.5)
    with watch:
        assert not left.event.wait(LIMIT + 0.3)
        assert left.event.wait(10)
    assert "waits for the others" in left.said[0]


def test_a_process_that_does_not_answer_is_named(watch, left):
    store = Store()
    store.set(f"{hanging.PREFIX}/1", "3\n3\nstep 7")
    with with_another(watch, store):
        assert left.event.wait(10)
    assert "process 1 does not answer, after step 7" in left.said[0]


def test_a_store_that_is_gone_does_not_end_the_watch(watch, left):
    class Gone(Store):
        def set(self, key, value):
            raise RuntimeError("Connection reset by peer")

    with with_another(watch, Gone()):
        assert left.event.wait(10)


class Stuck(Callback):
    """Waits within step 2 until the watch has spoken, or for a moment where nobody watches."""

    kind: str = "stuck"

    def open(self, ctx):
        return StuckObserver()


class StuckObserver(Observer):
    left = Left()
    watches: ClassVar[list[Watch]] = []

    def on(self, event, view):
        if event == "step" and view.step == 2:
            for watch in self.watches:
                watch.limit = LIMIT
            assert self.left.event.wait(60) or not self.watches


@pytest.fixture
def stuck_run(small_job, monkeypatch, left):
    """Run three steps, the second of which hangs for a moment; say what `run.log` has."""

    def start(limit, **named):
        watches = []
        begin = Watch.__enter__
        monkeypatch.setattr(Watch, "__enter__", lambda self: watches.append(self) or begin(self))
        monkeypatch.setattr(StuckObserver, "watches", watches)
        monkeypatch.setattr(StuckObserver, "left", left)
        options = {"steps": 3, "precision": "fp32", "hang_timeout": limit}
        job = small_job(train=options, callbacks=[Stuck()], prior="none")
        return (run(job, **named).folder / "run.log").read_text()

    return start


def test_a_run_is_watched(stuck_run, left):
    log = stuck_run(600, leave=left)
    [said] = left.said
    assert "threading.py" in said
    assert "after step 1" in said
    assert "warning nothing has moved for" in log


def test_null_watches_nothing(stuck_run, left):
    left.event.set()
    assert "nothing has moved" not in stuck_run(None, leave=left)
    assert left.said == []


def test_from_python_a_hang_is_a_warning_and_ends_nothing(stuck_run, left, small_job, monkeypatch):
    log = small_job().folder / "run.log"

    def until_told(seconds):
        end = time.monotonic() + seconds
        while "warning nothing has moved for" not in log.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        return True

    monkeypatch.setattr(left.event, "wait", until_told)
    assert "trained to step 3" in stuck_run(600)
