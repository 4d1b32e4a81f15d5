"""Sweep files: what is wrong with them, where, before anything runs; the schema; `dbt validate`."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from dreambooth.errors import JobError
from dreambooth_plugins.sweep.checking import check, summary
from dreambooth_plugins.sweep.file import SweepFile
from dreambooth_plugins.sweep.space import Dimension, grid, overrides
from dreambooth_plugins.sweep.storage import without_password

ROOT = Path(__file__).parents[3]
RATES = {"low": 1e-4, "high": 1e-2}


def faults(sweep_file, **keys):
    with pytest.raises(JobError) as told:
        check(sweep_file(**keys))
    path = told.value.diagnostics[0].file
    return [
        (Path(path).read_text().splitlines()[d.line - 1][: d.column - 1], d.message)
        for d in told.value.diagnostics
    ]


@pytest.mark.parametrize(
    ("keys", "before", "message"),
    [
        ({"space": {"optimiser.lr": RATES}}, 'space: {"optimiser.lr": ', "unknown key"),
        ({"space": {"train.steps": [2, 0]}}, 'space: {"train.steps": [2, ', "at least 1, is 0"),
        (
            {"space": {"train.steps": {"low": 1.5, "high": 4}}},
            'space: {"train.steps": {"low": ',
            "whole number",
        ),
        (
            {"space": {"train.steps": {"low": 1, "high": 4, "step": 0.5}}},
            'space: {"train.steps": {"low": 1, "high": 4, "step": ',
            "so must step be",
        ),
        ({"space": {"optimizer.kind": ["adamw"]}}, 'space: {"optimizer.kind": ', "a kind alone"),
        ({"space": {"output": ["a", "b"]}}, 'space: {"output": ', "set by the study"),
        ({"space": {"optimizer.lr": {"low": 1.0}}}, 'space: {"optimizer.lr": ', "low and high"),
        (
            {"space": {"optimizer.lr": {"low": 0.0, "high": 1.0, "log": True}}},
            'space: {"optimizer.lr": ',
            "log needs a low above 0",
        ),
        ({"objective": "validation/los"}, "", "no number is logged"),
        ({"objective": "metric/diversity"}, "", "measures nothing"),
        (
            {"objective": ["train/loss", "validation/loss"], "pruner": "median"},
            "pruner: ",
            "pruned by one number",
        ),
        ({"trials": None}, "", 'a random search needs "trials"'),
        ({"search": "grid"}, "space: ", "a grid needs values"),
        ({"storage": "mysql://host/db"}, "storage: ", 'must be "file" or postgresql://'),
        ({"pruner": "meidan"}, "", '"median"'),
        ({"trails": 3}, "", 'unknown key "trails"'),
    ],
)
def test_each_fault_is_told_at_its_place(sweep_file, keys, before, message):
    found = faults(sweep_file, **keys)
    assert any(message in said for _, said in found), found
    [place] = [where for where, said in found if message in said]
    assert place == before


def test_all_faults_of_a_space_are_told_at_once(sweep_file):
    space = {"optimizer.lr": [-1.0, 1e-3], "train.steps": {"low": 0, "high": 3}}
    assert len(faults(sweep_file, space=space)) == 2


def test_faults_of_the_template_are_its_own(sweep_file, tmp_path):
    path = sweep_file()
    job = tmp_path / "job.yaml"
    job.write_text(job.read_text().replace("steps: 2", "steps: none"))
    with pytest.raises(JobError) as told:
        check(path)
    assert told.value.diagnostics[0].file == str(job)


def test_ranges_have_the_type_of_the_jobs_key(sweep_file):
    whole = {"low": 1, "high": 3}
    sweep = check(sweep_file(space={"optimizer.weight_decay": whole, "train.steps": whole}))
    assert [d.whole for d in sweep.space] == [False, True]
    assert [type(d.distribution()).__name__ for d in sweep.space] == [
        "FloatDistribution", "IntDistribution",
    ]  # fmt: skip


def test_a_grid_is_every_point_the_last_key_fastest():
    file = SweepFile.model_validate(
        {
            "name": "a",
            "job": "j",
            "objective": "x",
            "space": {"a": ["p", {"q": 1}], "b": {"low": 0.0, "high": 0.3, "step": 0.1}},
        }
    )
    space = [Dimension(k, axis, False) for k, axis in file.space.items()]
    points = grid(space)
    assert len(points) == 8
    assert [p["b"] for p in points[:4]] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert overrides(space, points[4]) == ['a={"q": 1}', "b=0.0"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me@host/db"),
        ("postgresql://me:${PW}@host/db", "postgresql://me:${PW}@host/db"),
        ("postgresql://host/db?password=secret", "postgresql://host/db"),
        ("postgresql://me:se@cret@host:5/db", "postgresql://me@host:5/db"),
        ("postgresql:///db", "postgresql:///db"),
        ("file", "file"),
    ],
)
def test_a_password_is_never_written(url, shown):
    assert without_password(url) == shown


def test_validate_takes_sweeps_beside_jobs(dbt, sweep_file, tmp_path):
    path = sweep_file(space={"train.steps": [2, 0]})
    done = dbt("validate", path, tmp_path / "job.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    sweep, job = json.loads(done.stdout)
    assert [sweep["ok"], job["ok"]] == [False, True]
    [error] = sweep["errors"]
    assert (error["line"], error["column"]) == (5, 28)
    done = dbt("validate", sweep_file(), cwd=tmp_path)
    assert done.returncode == 0
    assert "study, 3 trials, random: min validation/loss over optimizer.lr" in done.stdout
    done = dbt("validate", path, "-o", "trials=3", cwd=tmp_path)
    assert done.returncode == 2
    assert "-o and --memory are for jobs" in done.stderr


def test_the_schema_is_in_step_and_takes_what_the_model_takes(dbt, sweep_file, tmp_path):
    done = dbt("schema", "--of", "sweep", cwd=tmp_path)
    assert done.stdout == (ROOT / "schemas/sweep.schema.json").read_text()
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = {"name": "a", "job": "j.yaml", "objective": "train/loss", "space": {"train.seed": [1]}}
    for more in ({}, {"search": "grid"}, {"pruner": {"kind": "median"}}, {"objective": ["a", "b"]}):
        assert not list(validator.iter_errors(good | more))
    for wrong in ({"search": "gird"}, {"space": {}}, {"trails": 1}, {"objective": []}):
        assert list(validator.iter_errors(good | wrong)), wrong
    done = dbt("schema", "--of", "swep", cwd=tmp_path)
    assert done.returncode == 2
    assert 'did you mean "sweep"?' in done.stderr


def test_the_summary_says_what_will_be_done(sweep_file):
    assert summary(sweep_file(trials=7)).startswith("study, 7 trials, random: min validation/loss")


def test_a_missing_optuna_is_told_with_the_command(dbt, sweep_file, tmp_path, monkeypatch):
    import sys

    for name in [n for n in sys.modules if n.partition(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = dbt("sweep", sweep_file(), cwd=tmp_path)
    assert done.returncode == 1
    assert "optuna is not installed" in done.stderr
    assert "pip install 'dreambooth-trainer[sweep]'" in done.stderr


def test_the_guides_sweep_is_one_and_names_keys_of_a_job(sweep_file, tmp_path, small_job):
    guide = (ROOT / "plugins/guides/sweeps.md").read_text()
    text = guide.split("```yaml\n")[1].split("```")[0]
    path = sweep_file(small_job(validation={"every": 1}))
    path.write_text(text)
    sweep = check(path)
    assert (sweep.trials, [d.whole for d in sweep.space]) == (40, [False, True, True])
