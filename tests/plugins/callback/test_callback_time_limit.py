from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from dreambooth.interfaces import RunView, Stop
from dreambooth.plugins import registry
from dreambooth_plugins.callback import time_limit
from dreambooth_plugins.callback.time_limit import TimeLimit, TimeLimitObserver

VIEW = RunView(None, 5, 100, {}, Path())


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_stops_at_the_first_step_past_the_limit():
    clock = Clock()
    observer = TimeLimitObserver(90.0, clock)
    clock.now += 500.0  # set-up does not count
    assert observer.on("start", VIEW) is None
    clock.now += 89.9
    assert observer.on("step", VIEW) is None
    clock.now += 0.2
    for other in ("log", "sample", "checkpoint", "end"):
        assert observer.on(other, VIEW) is None
    assert observer.on("step", VIEW) == Stop("the time limit of 1.5 minutes is used up")


def test_a_resumed_process_has_the_full_time_again():
    clock = Clock()
    before = TimeLimitObserver(60.0, clock)
    before.on("start", VIEW)
    clock.now += 61.0
    assert before.on("step", VIEW)
    after = TimeLimitObserver(60.0, clock)
    after.load_state(before.state())
    after.on("start", VIEW)
    clock.now += 59.0
    assert after.on("step", VIEW) is None


def test_an_opened_limit_watches_real_time():
    observer = TimeLimit(minutes=1e-9).open(SimpleNamespace(world_size=1))
    observer.on("start", VIEW)
    assert isinstance(observer.on("step", VIEW), Stop)
    patient = TimeLimit(minutes=1000).open(SimpleNamespace(world_size=1))
    patient.on("start", VIEW)
    assert patient.on("step", VIEW) is None


def test_all_processes_stop_with_the_slowest(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time_limit.time, "monotonic", clock)
    other = torch.tensor([61.0])
    ctx = SimpleNamespace(
        world_size=2, device=torch.device("cpu"), gather=lambda mine: torch.cat([mine, other])
    )
    share = time_limit._slowest(ctx)
    observer = TimeLimitObserver(60.0, clock, share)
    observer.on("start", VIEW)
    assert isinstance(observer.on("step", VIEW), Stop)
    other[0] = 59.0
    assert observer.on("step", VIEW) is None
    opened = TimeLimit(minutes=0.5).open(ctx)
    opened.on("start", VIEW)
    assert isinstance(opened.on("step", VIEW), Stop)


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_a_limit_must_be_positive(minutes):
    with pytest.raises(ValidationError):
        TimeLimit(minutes=minutes)


def test_time_limit_is_registered():
    assert registry().kinds("callback")["time_limit"] is TimeLimit
