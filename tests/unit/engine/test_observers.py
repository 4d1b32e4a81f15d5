"""Callbacks get their own state back, wherever they stand in the list."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from dreambooth import Callback
from dreambooth.component.door import WrongAnswer
from dreambooth.engine.watching.observers import Observers, watching
from dreambooth.interfaces import Observer, Save, Stop


class Holding(Observer):
    def __init__(self):
        self.held = None

    def on(self, event, view):
        return None

    def state(self):
        return {"held": self.held}

    def load_state(self, state):
        self.held = state["held"]


class One(Callback):
    kind: Literal["one"] = "one"

    def open(self, ctx):
        return Holding()


class Two(One):
    kind: Literal["two"] = "two"  # type: ignore[assignment]


class Ctx:
    def __init__(self, job):
        self.job = job


def opened(job):
    return Observers(Ctx(job))


def test_the_rule_for_stopping_comes_last(small_job):
    job = small_job(callbacks=[One(), Two()], early_stop=One())
    assert [c.kind for c in watching(job)] == ["one", "two", "one"]
    assert [c.kind for c in watching(small_job(callbacks=[One()]))] == ["one"]


def test_states_follow_their_kind_and_order(small_job):
    before = small_job(callbacks=[One(), Two()], early_stop=One())
    observers = opened(before)
    for number, observer in enumerate(observers):
        observer.held = number
    saved = observers.states()

    def restored(**sections):
        job = small_job(**sections)
        again = opened(job)
        again.load(saved)
        return [observer.held for observer in again]

    assert restored(callbacks=[One(), Two()], early_stop=One()) == [0, 1, 2]
    assert restored(callbacks=[Two(), One()], early_stop=One()) == [1, 0, 2]
    assert restored(callbacks=[Two()]) == [1]
    assert restored(callbacks=[Two(), Two()], early_stop=Two()) == [1, None, None]
    opened(before).load([{}])  # of a checkpoint that names no kinds


class Pair:
    """Two processes as two threads: what `Devices` does between them, over shared lists."""

    def __init__(self):
        self.barrier, self.given = threading.Barrier(2), [None, None]

    def end(self, rank):
        return SimpleNamespace(
            world_size=2,
            device="cpu",
            largest=lambda mine: self._all(rank, mine, lambda a, b: list(map(max, a, b))),
            share=lambda value: self._all(rank, value, lambda a, b: a),
        )

    def _all(self, rank, value, of):
        self.given[rank] = value
        self.barrier.wait(timeout=20)
        result = of(*self.given)
        self.barrier.wait(timeout=20)
        return result


class Answering(Callback):
    """Answers, or raises, what it was made for."""

    kind: Literal["answering"] = "answering"
    answers: tuple[Any, Any]

    def open(self, ctx):
        answer = self.answers[ctx.rank]

        class Opened(Observer):
            def on(self, event, view):
                if isinstance(answer, Exception):
                    raise answer
                return answer

        return Opened()


def asked_in_both(small_job, *answers):
    job = small_job(callbacks=[Answering(answers=answers)])
    pair, found = Pair(), {}

    def ask(rank):
        ctx = SimpleNamespace(job=job, rank=rank, is_main=rank == 0, devices=pair.end(rank))
        observers = Observers(ctx)
        found[rank] = observers.ask("step", None), observers.failure

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found[0], found[1]


def test_the_main_processs_answer_counts_in_all(small_job):
    stop, save = Stop("enough"), Save()
    assert asked_in_both(small_job, stop, None) == (([stop], None), ([stop], None))
    assert asked_in_both(small_job, None, stop) == (([], None), ([], None))
    assert asked_in_both(small_job, save, stop) == (([save], None), ([save], None))


def test_an_observer_that_fails_in_one_process_fails_the_run_in_all(small_job):
    error = RuntimeError("only here")
    (answers, other), (_, own) = asked_in_both(small_job, Save(), error)
    assert [type(answer) for answer in answers] == [Save]
    assert own is error
    assert "another process" in str(other)


def test_a_wrong_answer_is_refused_at_once(small_job):
    observers = Observers(
        SimpleNamespace(
            job=small_job(callbacks=[Answering(answers=("no", 0))]), rank=0, devices=None
        )
    )
    assert observers.ask("step", None) == []
    with pytest.raises(WrongAnswer, match=r"returned 'no' where Save\(\), Stop\(reason\) or None"):
        observers.raise_failure()


class Slow(Holding):
    """Takes ten seconds of the test's clock an event."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def on(self, event, view):
        self.clock[0] += 10.0


@pytest.mark.parametrize(("between", "named"), [(1.0, True), (500.0, False)])
def test_an_observer_that_makes_the_run_wait_is_named_once(monkeypatch, between, named):
    clock, said = [0.0], []
    monkeypatch.setattr("dreambooth.engine.watching.observers.time.monotonic", lambda: clock[0])

    class Waiting(Callback):
        kind: Literal["waiting"] = "waiting"

        def open(self, ctx):
            return Slow(clock)

    ctx = Ctx(SimpleNamespace(callbacks=[Waiting()], early_stop=None))
    ctx.devices, ctx.is_main, ctx.warn = None, True, said.append
    observers = Observers(ctx)
    for _ in range(4):
        clock[0] += between
        observers.ask("step", None)
    assert len(said) == int(named)
    if named:
        assert 'callback "waiting", on() (' in said[0]
        assert said[0].endswith("is slow: 10 s an event, 91% of the time since the run began")
