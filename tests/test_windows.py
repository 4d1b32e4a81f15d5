"""A whole run where what Windows lacks is missing, and no open file can be replaced."""

from __future__ import annotations

import os

import pytest

import yaml_text
from test_kill import Lives

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")


@pytest.mark.slow
def test_a_run_trains_resumes_and_starts_anew_on_a_faked_windows(small_job, tmp_path):
    job = small_job(
        train={"steps": 2},
        checkpoints={"every": 1, "keep_last": 1},
        samples={"every": 2, "per_prompt": 1},
        trackers=["jsonl", "tensorboard"],
    )
    path = yaml_text.write(job, tmp_path / "job.yaml")
    lives = Lives(tmp_path, path)
    for options in ([], ["-o", "train.steps=4"], ["--fresh"]):
        status, said = lives.run(["run", path, *options], tmp_path / "cache", windows=True)
        assert status == 0, said
        assert "done: " in said
    lives.close()
    assert (job.folder.with_name("small.old-1") / "final/model_index.json").is_file()
