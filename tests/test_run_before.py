"""A run that release 0.1's code wrote opens, says that it is finished, and goes on to the bit.

`tests/data/run-before-0.2` holds such a run (`builtin:tiny`, LoRA, 4 steps), and the metrics of the
same run with 6 steps by that code on the same machine.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.jobs.loading import load_job
from dreambooth.runs.finding import open_run
from dreambooth.runs.folder import RunFolder

KEPT = Path(__file__).parent / "data/run-before-0.2"


@pytest.fixture
def project(tmp_path):
    return Path(shutil.copytree(KEPT, tmp_path / "project"))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_of_release_0_1_opens_and_is_finished(project):
    folder, job = open_run(project / "runs/kept")
    assert job.train.steps == 4
    assert folder.result_is_whole()
    result = run(load_job(project / "job.yaml", ["train.steps=4"]), reporter=Quiet())
    assert result.already_finished


def test_a_run_of_release_0_1_goes_on(project):
    # What it drew is not here, another CPU draws it anew with other last bits, and pins would tell.
    RunFolder(project / "runs/kept").update_manifest(store={})
    result = run(load_job(project / "job.yaml"), reporter=Quiet())
    assert result.steps == 6
    straight, gone_on = rows(project / "straight.jsonl"), rows(result.folder / "metrics.jsonl")
    assert [row["step"] for row in gone_on] == [row["step"] for row in straight]
    for mine, theirs in zip(gone_on, straight, strict=True):
        # To the bit where both ran on one machine; another CPU rounds otherwise.
        assert mine == pytest.approx(theirs, rel=1e-4)
