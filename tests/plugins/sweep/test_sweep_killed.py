"""A worker killed in the middle of a trial: another one goes on, and the bits are the same."""

from __future__ import annotations

import os
import signal

import pytest
from test_kill import EQUAL, Lives, content

from dreambooth_plugins.sweep import results

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")


@pytest.fixture
def lives(tmp_path):
    zygote = Lives(tmp_path)
    yield zygote
    zygote.close()


@pytest.fixture
def template(small_job):
    return small_job(
        prior="none",
        train={"steps": 3},
        validation={"every": 1, "rows": 2},
        checkpoints={"every": 1, "keep_last": 3},
        freezing={"kind": "components", "train": ["unet"]},
    )


def check_taken_over(worker, one, template, tmp_path):
    """Let a worker of this process end the study; compare with the trial's job run alone."""
    from dreambooth import api

    [row] = results.rows(one.sweep.space, one.newest())
    assert row["state"] == "done"
    assert row["workers_lost"] == 1
    folder = one.folder.trials / "trial-0000"
    log = (folder / "run.log").read_text()
    assert "resuming from step 1 of 3" in log
    job = api.load(folder / "job.yaml")
    alone = api.run(job.model_copy(update={"name": "alone", "output": tmp_path}))
    assert row["values"] == [alone.scalars["validation/loss"]]
    assert content(folder, *EQUAL) == content(tmp_path / "alone", *EQUAL)
    # Every evaluation was told once, those before the kill by the worker that is gone.
    told = one.newest()[0].intermediate_values
    assert sorted(told) == [0, 1, 2, 3]


def test_a_killed_workers_trial_goes_on_from_its_checkpoint_in_the_same_bits(
    lives, worker, sweep_file, template, tmp_path
):
    path = sweep_file(template, trials=1)
    cache = os.environ["DREAMBOOTH_CACHE"]
    status, said = lives.run(["sweep", path], cache, die_at="step-000002:1")
    assert status == -signal.SIGKILL, said
    one = worker(job=template, trials=1)
    one.reporter = quiet()
    one.work()
    check_taken_over(worker, one, template, tmp_path)


def quiet():
    from dreambooth.engine.reporting import Quiet

    return Quiet()
