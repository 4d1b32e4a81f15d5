"""Callbacks get their own state back, wherever they stand in the list."""

from __future__ import annotations

from typing import Literal

from dreambooth import Callback
from dreambooth.engine.observers import load_observers, observer_states, open_observers, watching
from dreambooth.interfaces import Observer


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
    return open_observers(Ctx(job))


def test_the_rule_for_stopping_comes_last(small_job):
    job = small_job(callbacks=[One(), Two()], early_stop=One())
    assert [c.kind for c in watching(job)] == ["one", "two", "one"]
    assert [c.kind for c in watching(small_job(callbacks=[One()]))] == ["one"]


def test_states_follow_their_kind_and_order(small_job):
    before = small_job(callbacks=[One(), Two()], early_stop=One())
    observers = opened(before)
    for number, observer in enumerate(observers):
        observer.held = number
    saved = observer_states(before, observers)

    def restored(**sections):
        job = small_job(**sections)
        again = opened(job)
        load_observers(job, again, saved)
        return [observer.held for observer in again]

    assert restored(callbacks=[One(), Two()], early_stop=One()) == [0, 1, 2]
    assert restored(callbacks=[Two(), One()], early_stop=One()) == [1, 0, 2]
    assert restored(callbacks=[Two()]) == [1]
    assert restored(callbacks=[Two(), Two()], early_stop=Two()) == [1, None, None]
    load_observers(before, opened(before), [{}])  # of a checkpoint that names no kinds
