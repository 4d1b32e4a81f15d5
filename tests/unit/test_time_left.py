"""How long training still takes: steps and pauses timed apart."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dreambooth.cli.timeleft import Pause, TimeLeft


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


# Twelve pictures of 25 steps in two batches, as measured beside the embedded base and as they
# cost at Stable Diffusion 1.5's size, where a forward's overhead is nothing.
SMALL = Pause(every=100, last=400, steps=50.0, forwards=50)
LARGE = Pause(every=200, last=800, steps=120.0, forwards=60)


@pytest.mark.parametrize(
    ("run", "steps"),
    [
        (Run(0.104, 2.1, pauses=(SMALL,)), 400),
        (Run(10.2, 1250.0, pauses=(LARGE,)), 800),
        (Run(0.104, 2.1, 0.3, (SMALL, Pause(10, 400, 2.7, 2))), 400),
        (Run(0.5, 0.0), 300),
    ],
    ids=["small", "large", "with validation", "no pauses"],
)
def test_it_is_right_within_a_fifth_from_a_tenth_on(run: Run, steps: int) -> None:
    assert worst(run.watched(steps), steps) < 0.2


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
    uneven = Pause(every=300, last=400, steps=1.0, forwards=1)
    assert [uneven.count(done) for done in (0, 300, 400)] == [2, 1, 0]
    assert Pause(0, 400, 0.0, 0).count(0) == 0


def test_nothing_is_said_before_a_step_has_ended() -> None:
    assert TimeLeft(0, 400, (SMALL,)).seconds() is None
