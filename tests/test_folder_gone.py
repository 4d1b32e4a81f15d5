"""The run's folder is deleted, moved or replaced while the run is at work."""

from __future__ import annotations

import shutil

import pytest

from dreambooth.engine import events
from dreambooth.engine.loop import run
from dreambooth.errors import RunError


def delete(folder):
    shutil.rmtree(folder)


def move(folder):
    folder.rename(folder.with_name("elsewhere"))


def replace(folder):
    move(folder)
    shutil.copytree(folder.with_name("elsewhere"), folder)


@pytest.mark.parametrize(
    ("do", "options"),
    [
        (delete, {"log": {"every": 1}}),
        (move, {"log": {"every": 100}, "samples": {"every": 3, "per_prompt": 1}}),
        (replace, {"log": {"every": 100}, "checkpoints": {"every": 3}}),
    ],
    ids=["deleted, log", "moved, samples", "replaced, checkpoint"],
)
def test_it_is_told_and_no_half_run_comes_to_lie_there(small_job, monkeypatch, do, options):
    job = small_job(prior="none", trackers=[], **options)
    after_step, left = events.Events.after_step, {}

    def gone(self, result):
        if self._session.state.step == 2:
            do(job.folder)
            left.update({path: None for path in job.folder.rglob("*")})
        after_step(self, result)

    monkeypatch.setattr(events.Events, "after_step", gone)
    with pytest.raises(RunError, match="the run's folder is gone"):
        run(job)
    assert {path: None for path in job.folder.rglob("*")} == left
