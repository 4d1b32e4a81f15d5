"""A run that ends early: at the step the rule says, for good, and in one piece."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import yaml_text
from dreambooth import Callback, hookimpl
from dreambooth.engine.checkpoints import files
from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import JobError
from dreambooth.interfaces import Observer, Stop
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.loading import load_job
from dreambooth.plugins import registry_with
from dreambooth.runs.folder import RunFolder, check_resumable

VALIDATION = {"every": 1, "rows": 4}
BUMPY = {
    "optimizer": {"lr": 1e-2},
    "prior": "none",
    "validation": VALIDATION,
    "train": {"steps": 30},
}


@pytest.fixture
def bumpy(small_job):
    def make(name="small", **sections):
        return small_job(name=name, **{**BUMPY, **sections})

    return make


def curve(folder, name):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def there(folder):
    return [step for step, _ in files.list_checkpoints(folder / "checkpoints")]


def patience_step(values, patience):
    """Return the first step that is `patience` values later than the lowest before it."""
    steps, numbers = np.array(list(values)), np.array(list(values.values()))
    for n in range(1, len(numbers) + 1):
        if n - 1 - int(np.argmin(numbers[:n])) >= patience:
            return int(steps[n - 1])
    return None


def dvar_step(values, window, threshold):
    """Return the first step at which the late variance is that small a share of the whole."""
    steps, numbers = np.array(list(values)), np.array(list(values.values()))
    for n in range(1, len(numbers) + 1):
        late = numbers[:n][steps[:n] > steps[n - 1] - window]
        full = steps[0] <= steps[n - 1] - window
        if full and len(late) > 1 and np.var(late) / np.var(numbers[:n]) < threshold:
            return int(steps[n - 1])
    return None


RULES = {
    "patience": (
        {"kind": "patience", "patience": 4},
        "validation/loss",
        lambda values: patience_step(values, 4),
    ),
    "dvar": (
        {"kind": "dvar", "window": 7, "threshold": 0.6},
        "validation/loss_instance",
        lambda values: dvar_step(values, 7, 0.6),
    ),
}


@pytest.mark.parametrize(("rule", "metric", "expected"), RULES.values(), ids=RULES)
def test_it_ends_at_the_step_the_formula_says_and_for_good(bumpy, rule, metric, expected):
    options = {"samples": {"every": 100, "per_prompt": 1}}
    whole = run(bumpy("whole"))
    step = expected(curve(whole.folder, metric))
    assert 4 < step < 30
    result = run(bumpy(early_stop=rule, **options))
    assert result.steps == step
    assert result.for_good
    assert metric in result.stopped
    # Up to there it is the run without the rule; there it is saved, drawn and exported.
    assert list(curve(result.folder, metric)) == list(range(step + 1))
    some = {s: v for s, v in curve(whole.folder, metric).items() if s <= step}
    assert curve(result.folder, metric) == some
    assert there(result.folder) == [step]
    drawn = sorted(p.name for p in (result.folder / "samples").iterdir())
    assert drawn == ["step-000000", f"step-{step:06d}"]
    assert result.final.is_dir()
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["result"]["stop"] == result.stopped
    assert f"stopping after step {step}" in (result.folder / "run.log").read_text()
    again = run(bumpy(early_stop=rule, **options))
    assert again.already_finished
    assert (again.steps, again.stopped) == (step, result.stopped)


def test_without_the_rule_or_with_more_patience_it_goes_on(bumpy):
    rule = {"kind": "patience", "patience": 3}
    first = run(bumpy(early_stop=rule))
    values = curve(run(bumpy("whole")).folder, "validation/loss")
    step = patience_step(values, 5)
    assert first.steps < step
    longer = run(bumpy(early_stop={**rule, "patience": 5}))
    assert longer.steps == step
    whole = run(bumpy())
    assert (whole.steps, whole.for_good, whole.stopped) == (30, False, "")
    one, two = (bumpy(name).folder / "checkpoints/step-000030" for name in ("whole", "small"))
    weights = [load_file(folder / "trainable.safetensors") for folder in (one, two)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_run_that_ended_and_died_before_its_export_only_exports(bumpy, monkeypatch):
    from dreambooth_plugins.exporter import Diffusers

    job = bumpy(
        early_stop={"kind": "patience", "patience": 3},
        samples={"every": 100, "per_prompt": 1},
        metrics=["diversity"],
        checkpoints={"keep_best": {}},
    )

    class Dies(Exception):
        pass

    with monkeypatch.context() as patch:

        def dying(*_):
            raise Dies

        patch.setattr(Diffusers, "write", dying)
        with pytest.raises(Dies):
            run(job)
    before = (job.folder / "metrics.jsonl").read_bytes()
    step = max(there(job.folder))
    grid = job.folder / f"samples/step-{step:06d}/grid.png"
    grid.unlink()
    result = run(job)
    assert result.steps == step
    assert result.for_good
    assert result.kept
    assert result.scalars["validation/loss"] == curve(job.folder, "validation/loss")[step]
    assert (job.folder / "metrics.jsonl").read_bytes() == before
    assert not grid.exists()  # nothing was drawn again


def test_a_time_limit_is_not_for_good(bumpy):
    limit = [{"kind": "time_limit", "minutes": 1e-9}]
    first = run(bumpy(callbacks=limit))
    assert (first.steps, first.for_good) == (1, False)
    assert run(bumpy(callbacks=limit)).steps == 2


class Watching(Observer):
    def __init__(self, seen):
        self.seen = seen

    def on(self, event, view):
        self.seen.append((event, view.step, view.scalars.get("validation/loss")))
        if event == "end" and view.step == 99:
            return Stop("never")
        return None


class Watch(Callback):
    """Remembers what it is told."""

    kind: Literal["watch"] = "watch"

    def open(self, ctx):
        return Watching(SEEN)


SEEN: list = []


class Plugin:
    @hookimpl
    def register_callbacks(self):
        return [Watch]


def test_events_come_in_their_order_with_the_newest_numbers(bumpy):
    SEEN.clear()
    with registry_with(Plugin()):
        result = run(
            bumpy(
                callbacks=["watch"],
                train={"steps": 2},
                samples={"every": 2, "per_prompt": 1},
                validation={"every": 2, "rows": 4},
            )
        )
    values = curve(result.folder, "validation/loss")
    begin, last = values[0], values[2]
    assert SEEN == [
        ("start", 0, None),
        ("validate", 0, begin),
        ("sample", 0, begin),
        ("step", 1, begin),
        ("log", 1, begin),
        ("step", 2, begin),
        ("log", 2, begin),
        ("validate", 2, last),
        ("sample", 2, last),
        ("checkpoint", 2, last),
        ("end", 2, last),
    ]


def test_callbacks_that_come_and_go_leave_the_others_their_state(bumpy):
    rule = {"kind": "patience", "patience": 4}
    whole = run(bumpy("whole", early_stop=rule))
    limit = [{"kind": "time_limit", "minutes": 1e-9}]
    run(bumpy(early_stop=rule, callbacks=limit))
    run(bumpy(early_stop=rule, callbacks=["patience", *limit]))
    assert run(bumpy(early_stop=rule)).steps == whole.steps


def test_what_may_change_between_two_lives(bumpy):
    job = bumpy(validation={**VALIDATION, "holdout": 1})
    RunFolder(job.folder).begin(job, "", 1)
    folder = RunFolder(job.folder)
    harmless = bumpy(
        validation={**VALIDATION, "holdout": 1, "every": 5, "batch_size": 2},
        early_stop="patience",
        checkpoints={"keep_best": {}, "keep_every": 5},
    )
    assert "validation.every" in check_resumable(folder, harmless)
    for option in ({"holdout": 0}, {"rows": 5}):  # other pictures train, or other rows are compared
        with pytest.raises(JobError, match=f"validation.{next(iter(option))}"):
            check_resumable(folder, bumpy(validation={**VALIDATION, "holdout": 1, **option}))


def test_a_run_of_an_earlier_version_goes_on(small_job):
    job = small_job()
    folder = RunFolder(job.folder)
    folder.begin(job, "", 1)
    saved = folder.read_manifest()["job"]
    for later in ("validation", "early_stop"):
        del saved[later]
    folder.update_manifest(job=saved)
    assert check_resumable(folder, job) == {}
    with pytest.raises(JobError, match=r"validation\.holdout: 0 -> 1"):
        check_resumable(folder, small_job(validation={**VALIDATION, "holdout": 1}))


def test_the_plan_names_its_price_and_the_pictures_held_out(small_job):
    options = {"train": {"steps": 10, "batch_size": 2}, "validation": {"every": 4, "rows": 6}}
    plan = make_plan(small_job(**options), Quiet())
    assert (plan.evaluations, plan.evaluation_rows) == (4, 12)  # before, at 4, at 8, at the end
    # 4 evaluations of 12 rows, against steps of 4 rows at three forwards each
    assert plan.evaluation_steps == pytest.approx(4 * 12 / 12)
    assert plan.held_out == ()
    options["validation"]["holdout"] = 1
    plan = make_plan(small_job(**options), Quiet())
    assert len(plan.held_out) == 1
    assert plan.epochs == pytest.approx(10 * 2 / 2)
    assert make_plan(small_job(), Quiet()).evaluations == 0


def test_what_a_person_sees(dbt, bumpy, tmp_path):
    job = bumpy(
        early_stop={"kind": "patience", "patience": 3},
        validation={**VALIDATION, "holdout": 1},
        checkpoints={"keep_best": {}, "keep_every": 10, "every": 50},
    )
    path = yaml_text.write(job, tmp_path / "job.yaml")
    done = dbt("run", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in (
        "images        2 used, 1 held out, 0 left out",
        "validation    4 rows of held-out pictures, every 1 steps; together about",
        "checkpoints   every 50 steps and at each new best, ",
        "the newest 2, every 10th and the best by validation/loss are kept",
        "step 0/30  validation: loss",
        "step 1/30  validation: loss",
        "stopped  validation/loss did not get better 3 times in a row",
        "kept     step ",
    ):
        assert text in done.stdout
    again = dbt("run", path, cwd=tmp_path)
    assert "this run is finished" in again.stdout
    assert "to go on training it: -o early_stop=null" in again.stdout
    assert load_job(path, ["early_stop=null"]).early_stop is None
    with pytest.raises(JobErrors, match=r'unknown key "patiense"; did you mean "patience"\?'):
        load_job(path, ["early_stop.patiense=3"])
    assert load_job(path, ["early_stop=dvar", "early_stop.window=50"]).early_stop.window == 50


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_keep_the_same_one(dbt, bumpy, tmp_path):
    options = {
        # The loss falls, so that "the higher the better" has seen its best at step 0.
        "early_stop": {"kind": "patience", "patience": 2, "mode": "max"},
        "checkpoints": {"keep_best": {}},
        "optimizer": {"lr": 1e-4},
        "validation": {"every": 2, "rows": 5},
        "train": {"steps": 8},
    }
    one = run(bumpy("one", **{**options, "train": {"steps": 8, "batch_size": 2}}))
    path = yaml_text.write(bumpy("two", **options), tmp_path / "two.yaml")
    done = dbt("run", path, "--processes", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = bumpy("two").folder
    first, second = curve(one.folder, "validation/loss"), curve(folder, "validation/loss")
    assert list(first) == list(second) == [0, 2, 4]  # of 8 steps
    assert list(second.values()) == pytest.approx(list(first.values()), rel=1e-5)
    result = json.loads((folder / "manifest.json").read_text())["result"]
    assert result["kept"]["why"] == one.kept
