"""Curves and comparisons: what is kept of many points, and what a difference is worth."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_plugins.report.compare import interval, student, verdicts
from dreambooth_plugins.report.document import (
    Evaluation,
    Measure,
    Option,
    PictureMeasure,
    Run,
    Samples,
    comparable,
)
from dreambooth_plugins.report.poster import MAX_POLYLINE, Line, freedom_map, poster, ticks
from dreambooth_plugins.report.series import curves_of, smoothed, thinned
from dreambooth_plugins.report.verdict import best_of, verdict_of


@given(st.lists(st.floats(-1e6, 1e6), max_size=400), st.integers(4, 60))
def test_thinning_keeps_ends_and_peaks_and_the_limit(values: list[float], limit: int) -> None:
    steps = list(range(0, 10 * len(values), 10))
    kept, thin = thinned(steps, values, limit)
    assert len(kept) == len(thin) <= max(limit, 4)
    assert kept == sorted(set(kept))
    assert all(values[step // 10] == value for step, value in zip(kept, thin, strict=True))
    if values:
        assert (kept[0], kept[-1]) == (steps[0], steps[-1])
        assert (min(thin), max(thin)) == (min(values), max(values))


def test_the_smoothed_line_is_the_mean_of_the_neighbours() -> None:
    values = [1.0, 5.0, 3.0, 7.0, 11.0]
    assert smoothed(values, 3) == pytest.approx([1.0, 3.0, 5.0, 7.0, 11.0])
    assert smoothed([4.0] * 30, 9) == pytest.approx([4.0] * 30)


def test_curves_pass_over_what_is_no_number_and_a_step_logged_twice_counts_once(
    tmp_path: Path,
) -> None:
    lines = [
        '{"step": 10, "train/loss": 0.5, "note": "text", "flag": true}',
        "not JSON",
        '{"step": 20, "train/loss": NaN}',
        '{"step": -1, "train/loss": 1}',
        '{"train/loss": 3}',
        '{"step": 10, "train/loss": 0.25}',
        '{"step": 30, "train/loss": 1e400}',
        '{"step": 40, "odd/<b>\\u001b": 2}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    curves, last = curves_of(tmp_path)
    assert [(c.steps, c.values) for c in curves] == [([10], [0.25]), ([40], [2.0])]
    assert last == 40
    assert "\x1b" not in curves[1].name + curves[1].title


def test_a_long_run_has_a_thousand_points_a_curve(tmp_path: Path) -> None:
    rows = [{"step": i, "train/loss": math.sin(i) + (9 if i == 7777 else 0)} for i in range(30_000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (curve,), _ = curves_of(tmp_path)
    assert len(curve.steps) <= 1000
    assert curve.logged == 30_000
    assert 7777 in curve.steps


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (3, 3.182), (30, 2.042), (60, 2.000), (120, 1.980)]
)
def test_students_quantile_is_the_tables(freedom: int, expected: float) -> None:
    assert student(freedom) == pytest.approx(expected, rel=2e-3)


def test_the_interval_is_students() -> None:
    values = [0.04, 0.01, 0.05, 0.02, 0.08]
    mean, margin = interval(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert margin == pytest.approx(2.776 * statistics.stdev(values) / math.sqrt(5))
    assert interval([0.5]) == (0.5, math.inf)


def evaluation(
    values: dict[tuple[str, int], float], encoder: str = "E", step: int = 100
) -> Evaluation:
    pictures = [
        PictureMeasure(prompt, prompt, seed, {"subject_similarity": value})
        for (prompt, seed), value in values.items()
    ]
    mean = statistics.mean(values.values())
    measure = Measure("subject_similarity", "L", mean, 0.01, len(values), None, None, "higher")
    return Evaluation(step, encoder, [measure], pictures)


def run(name: str, *evaluations: Evaluation, photos: str = "aa") -> Run:
    return Run(
        name, name, "ck fox", "finished", 100, [], Samples([], []), [], [], list(evaluations), [],
        [], [], [], {"01.png": photos}, "", None, [],
    )  # fmt: skip


def test_runs_are_compared_by_prompt_in_pairs_of_equal_seeds() -> None:
    first = {("a", 1): 0.5, ("a", 2): 0.6, ("b", 1): 0.4, ("c", 9): 0.9}
    second = {("a", 1): 0.56, ("a", 2): 0.62, ("b", 1): 0.46, ("d", 9): 0.1}
    (found,), notes = verdicts([run("A", evaluation(first)), run("B", evaluation(second))])
    # Within a prompt first: (0.06 + 0.02) / 2 = 0.04, and 0.06.
    mean, margin = interval([0.04, 0.06])
    assert (found.difference, found.margin) == pytest.approx((mean, margin))
    assert (found.pairs, found.prompts, notes) == (3, 2, [])
    assert not found.clear
    assert "no clear difference between A and B" in found.sentence


def test_a_clear_difference_names_the_better_run_with_its_uncertainty() -> None:
    first = {(p, 1): 0.5 for p in "abcdef"}
    second = {(p, 1): 0.55 + 0.001 * i for i, p in enumerate("abcdef")}
    (found,), _ = verdicts([run("A", evaluation(first)), run("B", evaluation(second))])
    assert found.clear
    assert re.search(r"B is better by 0\.05\d ± 0\.00\d \(6 pairs", found.sentence)


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (run("B", evaluation({("a", 1): 1.0}, "other")), "measured by E and by other"),
        (run("B", evaluation({("a", 1): 1.0}), photos="bb"), "different photographs"),
        (run("B", evaluation({("a", 2): 1.0})), "same prompt and seed"),
        (
            replace(
                run("B", evaluation({("a", 1): 1.0})),
                options=[Option("data.resolution", "512", True)],
            ),
            "cut to different sizes",
        ),
        (run("B"), "Nothing was measured on B"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(second: Run, why: str) -> None:
    found, notes = verdicts([run("A", evaluation({("a", 1): 0.5})), second])
    assert found == []
    assert why in notes[0]


def measured(step: int, like: float, free: float) -> Evaluation:
    return Evaluation(
        step,
        "E",
        [
            Measure("subject_similarity", "L", like, 0.02, 8, 0.3, 0.74, "higher"),
            Measure("prompt_alignment", "F", free, 0.005, 8, 0.31, None, "higher"),
        ],
        [],
    )


def test_the_best_step_is_the_most_alike_that_still_obeys() -> None:
    steps = [measured(100, 0.5, 0.30), measured(200, 0.70, 0.295), measured(300, 0.8, 0.2)]
    best = best_of(steps)
    assert best is not None
    assert best.step == 200
    sentence, step = verdict_of(steps, [], 300, True)
    assert step == 200
    assert sentence.startswith("Good likeness at step 200")
    low, _ = verdict_of([measured(100, 0.31, 0.3)], [], 100, True)
    assert low.startswith("It has not learned your subject yet")


def test_a_step_measured_on_other_prompts_is_not_compared() -> None:
    """`dbt evaluate --prompts FILE` measures one step anew; the others keep the run's samples."""
    samples = [measured(step, like, 0.3) for step, like in ((100, 0.5), (200, 0.6), (300, 0.7))]
    other = replace(measured(400, 0.9, 0.3), asked="7 x 4")
    best = best_of([*samples, other])
    assert best is not None
    assert best.step == 300
    assert [e.step for e in comparable([*samples, other])] == [100, 200, 300]
    assert comparable([]) == []


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 800, 6) == [0, 200, 400, 600, 800]
    assert ticks(0.123, 0.138, 4) == pytest.approx([0.125, 0.13, 0.135])
    assert ticks(5, 5) == [5]


def test_posters_are_bounded_escaped_and_told_in_words() -> None:
    nasty = '</svg><script>alert("x")</script>'
    line = Line(nasty, list(range(5000)), [float(i % 7) for i in range(5000)], 0)
    text = str(poster(nasty, [line, Line("one point", [3], [1.0], 1)], "c"))
    assert "<script" not in text
    for points in re.findall(r'points="([^"]*)"', text):
        assert len(points.split()) <= MAX_POLYLINE
    assert re.search(r"<desc[^>]*>.*from 0 at step 0 to 1 at step 4999", text)
    assert "circle" in text
    assert "style=" not in text


def test_the_map_shows_every_measured_step_and_nothing_without_measures() -> None:
    drawn = str(freedom_map([run("A", measured(100, 0.5, 0.3), measured(200, 0.7, 0.29))]))
    assert re.findall(r'data-step="(\d+)"', drawn) == ["100", "200"]
    assert "photograph to photograph" in drawn
    assert str(freedom_map([run("A")])) == ""
