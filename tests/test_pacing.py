"""`checkpoints.every: auto`: at most 2 % of the time, every 15 minutes at least."""

from __future__ import annotations

import itertools
from functools import partial

import pytest

from dreambooth import run
from dreambooth.engine import events, loop
from dreambooth.engine.checkpoints import rotation as pacing
from dreambooth.engine.checkpoints.rotation import Pace
from dreambooth.engine.devices.processes import open_devices


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self):
        return self.now


def life(pace, clock, *, step, cost, steps=1000):
    """Take steps of `step` seconds, each checkpoint costing `cost`; return when they began."""
    began = []
    start = clock.now
    for _ in range(steps):
        clock.now += step
        if pace.is_due():
            began.append(clock.now - start)
            with pace.timed():
                clock.now += cost
    return began


@pytest.fixture
def pace(small_job):
    def make(clock, trained=10_000_000, **options):
        job = small_job(checkpoints={"every": "auto", **options})
        with open_devices(job.train) as devices:
            return Pace(job, devices, trained, clock)

    return make


@pytest.mark.parametrize("cost", [0.01, 0.5, 5.0, 17.9])
def test_checkpoints_take_two_per_cent_of_the_time_and_come_no_later_than_that(pace, cost):
    clock = Clock()
    began = life(pace(clock, trained=1000), clock, step=cost, cost=cost)
    # The first one goes by the guess from the checkpoint's size.
    worked = [b - a - cost for a, b in itertools.pairwise(began)]
    assert len(worked) > 10
    for seconds in worked:
        assert cost / 0.02 - 1e-6 <= seconds <= cost / 0.02 + 1.01 * cost


def test_however_long_one_takes_fifteen_minutes_are_the_most_that_may_be_lost(pace):
    clock = Clock()
    began = life(pace(clock, trained=860_000_000), clock, step=10.0, cost=120.0)
    assert began[0] <= 910
    assert all(b - a - 120 <= 910 for a, b in itertools.pairwise(began))


def test_before_the_first_is_timed_its_size_stands_for_it(pace):
    small, large = pace(Clock(), trained=100_000), pace(Clock(), trained=2_000_000)
    assert large.interval == pytest.approx(20 * small.interval)


def test_a_number_of_steps_leaves_the_clock_out_of_it(pace):
    clock = Clock()
    assert life(pace(clock, every=5), clock, step=60.0, cost=1.0) == []


def test_a_run_saves_by_the_clock_and_at_its_end(small_job, monkeypatch):
    """A step takes a second and a checkpoint 0.078 s, which is 2 % of 3.9 s."""
    clock = Clock()
    monkeypatch.setattr(pacing, "GUESS", 1e12)
    written = []
    save = events.files.save

    def counted(folder, step, *rest):
        written.append(step)
        clock.now += 0.078
        return save(folder, step, *rest)

    def ticking(session):
        clock.now += 1.0
        return step_of(session)

    step_of = loop.train_step
    monkeypatch.setattr(loop, "train_step", ticking)
    monkeypatch.setattr(events.files, "save", counted)
    monkeypatch.setattr(events, "Pace", partial(Pace, clock=clock))
    job = small_job(checkpoints={"every": "auto"}, train={"steps": 10})
    run(job)
    assert written == [1, 5, 9, 10]
