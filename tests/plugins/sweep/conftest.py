"""A template, sweeps of it, and runs that take no time."""

from __future__ import annotations

import json
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

import yaml_text

pytest.importorskip("optuna", reason="optuna is not installed")


@pytest.fixture
def sweep_file(small_job, tmp_path):
    """Write a template and a sweep of it: `sweep_file(trials=3, space={...})`."""

    def write(job: Any = None, **keys: Any) -> Any:
        template = job or small_job(
            prior="none", train={"steps": 2}, validation={"every": 1, "rows": 2}, exports=[]
        )
        yaml_text.write(template, tmp_path / "job.yaml")
        said = {
            "name": "study",
            "output": "sweeps",
            "job": "job.yaml",
            "objective": "validation/loss",
            "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
            "search": "random",
            "trials": 3,
        }
        said |= keys
        path = tmp_path / "sweep.yaml"
        path.write_text(
            "".join(f"{k}: {json.dumps(v)}\n" for k, v in said.items() if v is not None)
        )
        return path

    return write


class Said:
    """A reporter that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.info = self.warn = self.lines.append
        self.progress = self.training = self.step = self.pictures = None

    def scalars(self, step: int, values: Any) -> None:
        """Show nothing."""


@pytest.fixture
def worker(sweep_file):
    """Open a worker of a sweep: `worker(trials=2)`; the same call again opens another one."""
    from dreambooth_plugins.sweep.checking import check
    from dreambooth_plugins.sweep.folder import begin
    from dreambooth_plugins.sweep.worker import Worker

    with ExitStack() as opened:

        def make(**keys: Any) -> Worker:
            checked = check(sweep_file(**keys))
            made = Worker(begin(checked), checked, Said(), checked.file.storage)
            opened.enter_context(made.store)
            return made

        yield make


@pytest.fixture
def fake_run(monkeypatch):
    """Put a run that trains nothing in the place of the real one; `runs` are the jobs it got.

    `loss(job, step)` gives the numbers of steps 1 to `train.steps`, or raises.
    """
    from dreambooth import api

    fake = SimpleNamespace(runs=[], loss=lambda job, step: job.optimizer.lr * step, begun=None)

    def run(job: Any, *, reporter: Any) -> Any:
        fake.runs.append(job)
        if fake.begun:
            fake.begun(job)
        value = float("nan")
        for step in range(1, job.train.steps + 1):
            value = fake.loss(job, step)
            reporter.scalars(step, {"validation/loss": value})
        return SimpleNamespace(
            scalars={"validation/loss": value, "train/loss": 2 * value}, history={}
        )

    monkeypatch.setattr(api, "run", run)
    return fake


@pytest.fixture
def lives(tmp_path):
    """Run `dbt` in processes that may be killed."""
    from test_kill import Lives

    zygote = Lives(tmp_path)
    yield zygote
    zygote.close()


@pytest.fixture
def template(small_job):
    """A template that writes a checkpoint and a number at every step."""
    return small_job(
        prior="none",
        train={"steps": 3},
        validation={"every": 1, "rows": 2},
        checkpoints={"every": 1, "keep_last": 3},
        freezing={"kind": "components", "train": ["unet"]},
    )
