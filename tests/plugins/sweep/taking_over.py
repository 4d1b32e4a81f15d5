"""What must hold once a worker has ended a trial that another one began."""

from __future__ import annotations

from dreambooth_plugins.sweep import results
from test_kill import EQUAL, content


def quiet():
    from dreambooth.engine.reporting import Quiet

    return Quiet()


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
