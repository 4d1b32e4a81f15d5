"""`patience` and `dvar` stop where their formulas say, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dreambooth.interfaces import RunView, Stop
from dreambooth.jobs.checks import preflight
from dreambooth_plugins.callback import Dvar, Patience

VALUES = st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 1.0]), max_size=25)


def view(step, **scalars):
    return RunView(None, step, 999, {k.replace("_", "/", 1): v for k, v in scalars.items()}, Path())


def first_stop(rule, steps, values):
    for n in range(1, len(values) + 1):
        if rule.reason(steps[:n], values[:n]):
            return n - 1
    return None


@example([1.0, 0.95, 0.92], 2, 0.1, "min")
@given(VALUES, st.integers(1, 5), st.sampled_from([0.0, 0.1]), st.sampled_from(["min", "max"]))
def test_patience_counts_values_since_the_last_better_one(values, patience, min_delta, mode):
    rule = Patience(patience=patience, min_delta=min_delta, mode=mode)
    signed = [v if mode == "min" else -v for v in values]
    expected, best, waited = None, np.inf, 0
    for n, value in enumerate(signed):
        best, waited = (value, 0) if value < best - min_delta else (best, waited + 1)
        if waited >= patience:
            expected = n
            break
    assert first_stop(rule, list(range(len(values))), values) == expected


@given(
    st.lists(st.floats(0.0, 2.0), max_size=40),
    st.integers(1, 7),
    st.integers(8, 60),
    st.sampled_from([0.1, 0.4, 0.9]),
)
def test_dvar_compares_the_variance_of_the_window_with_that_of_all(
    values, every, window, threshold
):
    steps = [every * n for n in range(len(values))]
    expected = None
    for n in range(1, len(values) + 1):
        s, v = np.array(steps[:n]), np.array(values[:n])
        last = v[s > s[-1] - window]
        if s[0] > s[-1] - window or len(last) < 2:
            continue
        late, whole = last.var(), v.var()
        if abs(late - threshold * whole) < 1e-12:
            return  # a tie that rounding decides
        if late < threshold * whole:
            expected = n - 1
            break
    assert first_stop(Dvar(window=window, threshold=threshold), steps, values) == expected


def test_dvar_never_stops_on_a_curve_that_does_not_move():
    assert first_stop(Dvar(window=10), list(range(0, 100, 5)), [0.5] * 20) is None


def test_reasons_say_what_was_seen():
    said = Patience(patience=2).reason([0, 5, 10, 15], [2.0, 1.0, 1.5, 1.25])
    assert said == ("validation/loss did not get better 2 times in a row; the best was 1 at step 5")
    said = Dvar(window=10).reason([0, 5, 10, 15], [2.0, 1.0, 0.9, 0.8])
    assert said == (
        "validation/loss_instance has settled: its variance over the last 10 steps is 0.011 of "
        "that over all 15, below 0.4"
    )


def test_a_value_counts_once_at_the_event_that_brings_it():
    observer = Patience(patience=2).open(None)
    assert observer.on("validate", view(5, validation_loss=1.0)) is None
    for event in ("step", "log", "sample", "checkpoint", "end"):
        assert observer.on(event, view(6, validation_loss=1.0)) is None
    assert observer.on("validate", view(10, validation_loss=1.0)) is None
    assert observer.on("validate", view(10, validation_loss=1.0)) is None  # the same again
    assert observer.on("validate", view(15, other=1.0)) is None
    assert observer.on("validate", view(15, validation_loss=float("nan"))) is None
    assert observer.on("validate", view(20, validation_loss=1.0)) == Stop(
        "validation/loss did not get better 2 times in a row; the best was 1 at step 5", final=True
    )


@pytest.mark.parametrize(("metric", "event"), [("metric/x", "sample"), ("train/loss", "log")])
def test_numbers_of_samples_and_of_training_count_when_they_are_new(metric, event):
    observer = Patience(metric=metric, patience=1).open(None)
    name = metric.replace("/", "_")
    assert observer.on(event, view(1, **{name: 1.0})) is None
    assert observer.on("validate", view(2, **{name: 1.0})) is None
    assert isinstance(observer.on(event, view(2, **{name: 1.0})), Stop)


def test_the_curve_survives_and_a_changed_rule_judges_it_anew():
    first = Patience(patience=2).open(None)
    for step, value in enumerate((1.0, 2.0, 2.0)):
        stopped = first.on("validate", view(step, validation_loss=value))
    assert isinstance(stopped, Stop)

    def resumed(rule):
        observer = rule.open(None)
        observer.load_state(first.state())
        return observer

    assert resumed(Patience(patience=2)).on("start", view(2)) == stopped  # ended for good
    more = resumed(Patience(patience=3))
    assert more.on("start", view(2)) is None
    assert isinstance(more.on("validate", view(3, validation_loss=2.0)), Stop)
    other = resumed(Patience(patience=2, metric="validation/loss_instance"))
    assert other.on("start", view(2)) is None


@pytest.mark.parametrize(
    ("sections", "at", "hint"),
    [
        ({"early_stop": "patience"}, ("early_stop", "metric"), "set validation.every"),
        (
            {"early_stop": "dvar", "train": {"steps": 600}},
            ("early_stop", "metric"),
            "set validation.every",
        ),
        (
            {"callbacks": [{"kind": "time_limit", "minutes": 1}, "patience"]},
            ("callbacks", 1, "metric"),
            "set validation.every",
        ),
        (
            {"validation": {"every": 300}, "early_stop": "dvar", "train": {"steps": 900}},
            ("early_stop", "window"),
            "set validation.every to 44 or less",
        ),
        (
            {"validation": {"every": 10}, "early_stop": "dvar", "train": {"steps": 440}},
            ("early_stop", "window"),
            "train for more steps",
        ),
        (
            {"early_stop": {"kind": "patience", "metric": "metric/diversity"}},
            ("early_stop", "metric"),
            "name a metric in metrics",
        ),
        (
            {
                "prior": "none",
                "validation": {"every": 10},
                "early_stop": {"kind": "patience", "metric": "validation/loss_class"},
            },
            ("early_stop", "metric"),
            "use validation/loss, or a prior",
        ),
    ],
)
def test_a_rule_that_could_never_work_is_named_with_its_cure(small_job, sections, at, hint):
    [problem] = preflight(small_job(**sections))
    assert problem.at == at
    assert hint in problem.hint


def test_a_rule_that_can_work_is_not(small_job):
    on = {"validation": {"every": 10}, "train": {"steps": 600}}
    assert preflight(small_job(early_stop="dvar", **on)) == []
    assert preflight(small_job(early_stop="patience", **on)) == []
