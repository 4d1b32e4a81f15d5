"""Killed at any instant, the same command ends in the same bits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import yaml_text

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")


class Lives:
    """Runs `dbt` again and again in a zygote (see `fault_injection`)."""

    def __init__(self, folder: Path, *jobs: Path) -> None:
        self._output = folder / "output.txt"
        script = Path(__file__).with_name("fault_injection.py")
        env = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        self._zygote = subprocess.Popen(
            [sys.executable, str(script), *map(str, jobs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip

    def run(self, args, cache, kill_after=None, signals=(), **faults) -> tuple[int, str]:
        """Live once; return the exit status and what was said.

        `signals` are (seconds, number) pairs; `sent` holds the numbers that found it alive.
        """
        env = {"DREAMBOOTH_CACHE": str(cache), "OUTPUT": str(self._output)}
        line = {"args": list(map(str, args)), "env": env, **faults}
        self._zygote.stdin.write(json.dumps(line) + "\n")
        self._zygote.stdin.flush()
        pid = int(self._zygote.stdout.readline())
        if kill_after is not None:
            signals = [(kill_after, signal.SIGKILL)]
        self.sent = []
        timers = [threading.Timer(after, self._send, (pid, number)) for after, number in signals]
        for timer in timers:
            timer.start()
        status = int(self._zygote.stdout.readline())
        for timer in timers:
            timer.cancel()
        return status, self._output.read_text() if self._output.exists() else ""

    def _send(self, pid, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            self.sent.append(number)

    def close(self) -> None:
        self._zygote.stdin.close()
        self._zygote.wait(timeout=60)
        self._zygote.stdout.close()


@pytest.fixture
def lives(tmp_path):
    zygote = Lives(tmp_path)
    yield zygote
    zygote.close()


@pytest.fixture
def job_file(small_job, tmp_path):
    """Write a job that has everything which can be cut: caches, prior, average, samples."""

    def write(name):
        job = small_job(
            name=name,
            prior={"count": 6, "batch_size": 2},
            freezing={"kind": "components", "train": ["unet"]},
            train={"steps": 6, "ema": {"decay": 0.9}},
            checkpoints={"every": 2, "keep_last": 2},
            samples={"every": 3, "per_prompt": 1},
        )
        return yaml_text.write(job, tmp_path / f"{name}.yaml")

    return write


def content(folder: Path, *patterns: str) -> dict[str, str]:
    """Return relative name -> hash of the files that must be equal."""
    found = {}
    for pattern in patterns:
        for path in sorted(folder.rglob(pattern)):
            if path.is_file() and not path.name.startswith("."):
                name = path.relative_to(folder).as_posix()
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


EQUAL = ("final/**/*.safetensors", "checkpoints/**/*.safetensors", "metrics.jsonl")


def results(runs: Path, name: str, cache: Path):
    """Return what a run left: weights, checkpoints, metrics, class pictures, and the store."""
    run = content(runs / name, *EQUAL)
    return {**run, **content(runs / name / "prior", "*.png"), **content(cache, "chunk-*")}


def straight(lives, job_file, tmp_path):
    status, said = lives.run(["run", job_file("straight")], tmp_path / "cache-a")
    assert status == 0, said
    return results(tmp_path / "runs", "straight", tmp_path / "cache-a")


SOME = ("class-latents:2", "checkpoints:3", "rename:2", "final:1")
"""The class images, a checkpoint, a checkpoint that is whole but has no name yet, the export."""
EVERY = (
    *("moments:1", "class-latents:2", "class-pictures:1", "text:1"),  # the store
    *("checkpoints:1", "checkpoints:3", "rename:1", "checkpoints:4", "rename:2"),
    *("final:1", "rename:1"),  # the export: its file, and the moment before it gets its name
)


@pytest.mark.parametrize("moments", [SOME, pytest.param(EVERY, marks=pytest.mark.slow)])
def test_killed_inside_a_write_it_ends_in_the_same_bits(lives, job_file, tmp_path, moments):
    expected = straight(lives, job_file, tmp_path)
    path, cache = job_file("killed"), tmp_path / "cache-b"
    for moment in moments:
        status, said = lives.run(["run", path], cache, die_at=moment)
        assert status == -signal.SIGKILL, (moment, said)
    status, said = lives.run(["run", path], cache)
    assert status == 0, said
    assert results(tmp_path / "runs", "killed", cache) == expected
    left = [p.name for p in (tmp_path / "runs/killed").rglob(".*") if p.name != ".lock"]
    assert left == []


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bits(lives, job_file, tmp_path, emit):
    expected = straight(lives, job_file, tmp_path)
    path, cache, draw = job_file("killed"), tmp_path / "cache-b", random.Random(7)
    kills, longest = 0, 1.0
    while True:
        # Lives get longer, so that the run ends on any machine; most end in the midst of a write.
        delay = draw.uniform(0.1, longest)
        status, said = lives.run(["run", path], cache, kill_after=delay, slow=0.1)
        if status == 0:
            break
        assert status == -signal.SIGKILL, said
        kills, longest = kills + 1, 1.05 * longest
    emit("kills before the end", kills)
    assert kills >= 20
    assert results(tmp_path / "runs", "killed", cache) == expected
