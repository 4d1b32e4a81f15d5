"""How long training still takes: steps and pauses timed apart."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from dreambooth.cli.display.timeleft import Pause, TimeLeft, pauses_of


@dataclass
class Run:
    """A run whose every step and pause takes what it is told."""

    step: float
    samples: float
    validation: float = 0.0
    pauses: tuple[Pause, ...] = ()
    first_steps: float = 5.0

    def took(self, step: int) -> float:
        seconds = self.step + (self.first_steps if step <= 2 else 0.0)
        for pause, cost in zip(self.pauses, (self.samples, self.validation), strict=False):
            seconds += cost if pause.is_due(step) else 0.0
        return seconds

    def watched(self, steps: int, start: int = 0) -> list[tuple[float, float]]:
        """Return (told, true) seconds left after each step but the last."""
        now = 0.0
        left = TimeLeft(start, steps, self.pauses, clock=lambda: now)
        told: list[tuple[float, float]] = []
        for step in range(start + 1, steps):
            now += self.took(step)
            left.ended(step)
            seconds = left.seconds()
            assert seconds is not None
            told.append((seconds, sum(self.took(s) for s in range(step + 1, steps + 1))))
        return told


def worst(told: list[tuple[float, float]], steps: int) -> float:
    """Return the largest relative error from a tenth of the run on, its last steps left out."""
    return max(abs(said / true - 1) for said, true in told[steps // 10 : -5])


def priced(small_job: Any, parameters: int, side: int, device: str = "cpu", **sections: Any) -> Any:
    """Return a job's pauses: twelve pictures, 25 steps each, in two batches."""
    base = {"data": {"resolution": side}, "sampler": {"kind": "cfg", "steps": 25}}
    samples = {"every": 100, "prompts": ["a", "b", "c"], "per_prompt": 4}
    options = {"samples": samples, "train": {"steps": 400, "batch_size": 2}} | base | sections
    plan = SimpleNamespace(
        parts=[SimpleNamespace(parameters=parameters), SimpleNamespace(parameters=10**6)],
        rows=2 * options["train"].get("batch_size", 1),
        device=device,
        evaluation_rows=32,
    )
    return pauses_of(small_job(**options), plan)


EMOJI, SD15 = (9_482_452, 64), (859_500_000, 512)


@pytest.mark.parametrize(
    ("step", "samples", "model"),
    [(0.104, 2.1, EMOJI), (0.45, 12.0, EMOJI), (10.2, 510.0, SD15)],
    ids=["small, two threads", "small, one thread of a busy machine", "large"],
)
def test_it_is_right_within_a_fifth_from_a_tenth_on(
    small_job: Any, step: float, samples: float, model: tuple[int, int]
) -> None:
    """Steps and samples as measured, but for the large model: in proportion to its rows."""
    run = Run(step, samples, pauses=priced(small_job, *model))
    assert worst(run.watched(400), 400) < 0.2


def test_validation_counts_too(small_job: Any) -> None:
    pauses = priced(small_job, *EMOJI, validation={"every": 10})
    assert worst(Run(0.104, 2.1, 0.25, pauses).watched(400), 400) < 0.2


def test_without_pauses_it_is_the_steps() -> None:
    assert worst(Run(0.5, 0.0).watched(300), 300) < 0.01


def test_a_small_model_pays_for_forwards_and_a_large_one_for_rows(small_job: Any) -> None:
    [small, _], [large, _] = (priced(small_job, *model) for model in (EMOJI, SD15))
    assert 18 < small.steps < 30
    assert large.steps == pytest.approx(600 / 12, rel=0.01)  # as the plan says
    [fast, _] = priced(small_job, *SD15, device="cuda:0")
    assert fast.steps < large.steps


def test_it_counts_down_during_a_pause() -> None:
    now = 0.0
    left = TimeLeft(0, 10, [Pause(5, 10, 30.0)], clock=lambda: now)
    for step in range(1, 5):
        now += 1.0
        left.ended(step)
    assert left.seconds() == pytest.approx(6 + 60)
    now += 21.0  # of step 5 and its pause
    assert left.seconds() == pytest.approx(5 + 40)
    now += 1000.0
    assert left.seconds() == pytest.approx(5 + 30)


SMALL = Pause(every=100, last=400, steps=23.0)


def test_a_resumed_run_counts_what_is_left() -> None:
    run = Run(0.104, 2.1, pauses=(SMALL,))
    told = run.watched(400, start=250)
    assert all(abs(said / true - 1) < 0.2 for said, true in told[15:-5])


def test_a_pause_that_was_seen_counts_as_it_was() -> None:
    run = Run(0.1, 30.0, pauses=(SMALL,))
    said, true = run.watched(400)[150]
    assert said == pytest.approx(true, rel=0.01)


def test_pauses_are_counted_to_the_end() -> None:
    assert [SMALL.count(done) for done in (0, 99, 100, 399, 400)] == [4, 4, 3, 1, 0]
    uneven = Pause(every=300, last=400, steps=1.0)
    assert [uneven.count(done) for done in (0, 300, 400)] == [2, 1, 0]
    assert Pause(0, 400, 0.0).count(0) == 0


def test_nothing_is_said_before_a_step_has_ended() -> None:
    assert TimeLeft(0, 400, (SMALL,)).seconds() is None


def test_what_step_zero_took_counts_before_any_step_was_timed() -> None:
    now = 0.0
    left = TimeLeft(0, 400, (Pause(100, 400, 23.0), Pause(200, 400, 46.0)), clock=lambda: now)
    now = 69.0  # samples and validation of the untrained base: a third and two thirds of it
    left.ended(0)
    assert left.seconds() is None  # no step yet
    for step in (1, 2, 3, 4):
        now += 0.5
        left.ended(step)
    assert left.seconds() == pytest.approx(396 * 0.5 + 4 * 23 + 2 * 46)


def test_a_step_that_follows_step_zero_is_not_taken_for_a_pause() -> None:
    now = 0.0
    left = TimeLeft(0, 10, (Pause(5, 10, 10.0),), clock=lambda: now)
    now = 7.0
    left.ended(0)
    now = 8.0
    left.ended(1)
    assert left.step_seconds == pytest.approx(1.0)


def test_a_larger_prompt_costs_by_its_area_and_its_own_steps(small_job: Any) -> None:
    [plain, _] = priced(small_job, *SD15, samples={"every": 100, "prompts": ["a"], "per_prompt": 1})
    large = {"prompt": "a", "size": [1024, 512], "steps": 50}
    samples = {"every": 100, "prompts": [large], "per_prompt": 1}
    [twice, _] = priced(small_job, *SD15, samples=samples)
    assert twice.steps == pytest.approx(4 * plain.steps, rel=0.02)
