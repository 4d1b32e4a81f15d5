"""`--memory`: does a job fit, and which options would make it fit?"""

from __future__ import annotations

import json

import pytest

import yaml_text
from dreambooth.cli.display.fit import fit_lines
from dreambooth.engine.cost.fitting import Fit, Need
from dreambooth.errors import JobError
from dreambooth.helpers.units import read_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GiB", 12 * 2**30), ("800 MiB", 800 * 2**20), ("24GB", 24 * 10**9), ("1.5g", 15 * 10**8),
     ("2097152", 2**21)],
)  # fmt: skip
def test_a_size_as_people_write_it(text, size):
    assert read_bytes("--memory", text) == size


@pytest.mark.parametrize("text", ["", "much", "12 apples", "-1GiB", "3KiB", "GiB", "1e99999GiB"])
def test_what_is_no_size_of_a_memory(text):
    with pytest.raises(JobError, match="--memory"):
        read_bytes("--memory", text)


@pytest.fixture
def job_file(small_job, tmp_path):
    job = small_job(prior="none", train={"batch_size": 4}, freezing="components")
    return yaml_text.write(job, tmp_path / "job.yaml")


def test_what_fits_is_said_by_validate_and_the_dry_run(dbt, job_file, tmp_path):
    held = dbt("validate", "job.yaml", "--memory", "8GiB", cwd=tmp_path)
    assert held.returncode == 0
    assert "job.yaml: 8.00 GiB is enough: at most" in held.stdout
    small = dbt("validate", "job.yaml", "--memory", "2MiB", "--json", cwd=tmp_path)
    assert small.returncode == 2
    [told] = json.loads(small.stdout)
    memory = told["memory"]
    assert (told["ok"], memory["fits"], memory["limit"]) == (False, False, 2**21)
    named = {option["options"][0]: option["bytes"] for option in memory["alone"]}
    assert {"train.gradient_checkpointing: true", "freezing.kind: adapter"} <= named.keys()
    assert "train: {batch_size: 1, accumulation: 4}" in named
    assert all(size < memory["bytes"] for size in named.values())
    assert list(named.values()) == sorted(named.values())
    assert memory["together"] is None
    shown = dbt("run", "job.yaml", "--dry-run", "--memory", "8GiB", cwd=tmp_path)
    assert shown.returncode == 0
    assert "memory        8.00 GiB is enough: at most" in shown.stdout


def test_the_words():
    alone = (Need(("a: 1",), 900 * 2**20, "export"), Need(("b: 2",), 1000 * 2**20, "training"))
    needs = Need((), 2**30, "training")
    assert list(fit_lines(Fit(950 * 2**20, needs, alone))) == [
        "0.93 GiB is not enough: this job takes 1.00 GiB at most (training)",
        "with a: 1: 0.88 GiB, which fits",
        "with b: 2: 0.98 GiB",
    ]
    together = Need(("a: 1", "b: 2"), 800 * 2**20, "training")
    *_, last = fit_lines(Fit(850 * 2**20, needs, alone, together))
    assert last == "together 0.78 GiB, which fits: a: 1, b: 2"
    *_, last = fit_lines(Fit(2**20, needs, alone))
    assert last.startswith("none of these is enough")


def test_a_run_does_not_take_it(dbt, job_file, tmp_path):
    told = dbt("run", "job.yaml", "--memory", "8GiB", cwd=tmp_path)
    assert told.returncode == 2
    assert "--dry-run" in told.stderr
