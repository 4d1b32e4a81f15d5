"""Signals at any moment: saved, the right exit code, and the same bits in the end."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import pytest

import yaml_text
from test_kill import Lives, results

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


@pytest.fixture
def job_file(small_job, tmp_path):
    """A job that has everything that can be cut or left for later."""
    job = small_job(
        name="straight",
        freezing={"kind": "components", "train": ["unet"]},
        train={"steps": 10, "ema": {"decay": 0.9}},
        checkpoints={"every": 4, "keep_best": {}},
        samples={"every": 5, "per_prompt": 2, "prompts": ["a photo of {identifier}"]},
        validation={"every": 3, "rows": 3},
    )
    return yaml_text.write(job, tmp_path / "job.yaml")


@pytest.fixture
def lives(tmp_path, job_file):
    zygote = Lives(tmp_path, job_file)
    yield zygote
    zygote.close()


class Runs:
    """Runs that are signalled again and again until they end; then the next one begins."""

    def __init__(self, folder, live):
        self.folder, self._live = folder, live
        self.seen, self.ends, self.finished = Counter(), Counter(), []
        self._name = "run-0"

    def life(self, *signals):
        """Live once and hold what comes of it against what was asked for."""
        status, said, came, _ = self._live(self._name, signals)
        self.seen.update(signal.Signals(n).name for n in came)
        manifest = self.folder / self._name / "manifest.json"
        done = manifest.exists() and json.loads(manifest.read_text()).get("result")
        stops = [n for n in came if n != signal.SIGUSR1]
        if status == 0 or (status < 0 and done and -status in stops):
            assert done, said
            self.finished.append(self._name)
            self._name = f"run-{len(self.finished)}"
            self.ends["finished"] += 1
            return
        assert status - 128 in stops, (status, said)
        assert "Traceback" not in said
        [step] = re.findall(r"stopped by \w+ at step (\d+)", said) or [None]
        self.ends["saved" if step else "between"] += 1
        if step and int(step):
            assert (self.folder / self._name / f"checkpoints/step-{int(step):06d}").is_dir(), said

    def end(self):
        """Let the run that was begun come to its end."""
        while not self.finished:
            self.life()


def forked(lives, job_file, cache):
    def live(name, signals, *options):
        given = [word for option in (f"name={name}", *options) for word in ("-o", option)]
        began = time.monotonic()
        status, said = lives.run(["run", job_file, *given], cache, signals=signals)
        return status, said, lives.sent, time.monotonic() - began

    return live


def moments(draw, longest, number):
    """A checkpoint asked for, then the end, each at any moment of a life."""
    first, second = sorted(draw.uniform(0.0, longest) for _ in range(2))
    return (first, signal.SIGUSR1), (second, number)


def signalled(live, folder, until):
    """Signal lives until so many signals in all, and of each kind, have come; compare each run."""
    whole, each = until
    straight = partial(live, "straight", (), "checkpoints.every=1", "checkpoints.keep_last=99")
    status, said, _, longest = straight()  # which fills the caches
    assert status == 0, said
    runs, draw = Runs(folder / "runs", live), random.Random(time.time_ns())
    while sum(runs.seen.values()) < whole or min(runs.seen[n.name] for n in STOPS) < each:
        before = len(runs.finished)
        rarest = min(STOPS, key=lambda number: runs.seen[number.name])
        runs.life(*moments(draw, longest, rarest))
        longest *= 0.8 if len(runs.finished) > before else 1.05  # the machine's speed varies
    runs.end()
    expected = results(folder / "runs", "straight", folder / "cache")
    for name in runs.finished:
        compare(results(folder / "runs", name, folder / "cache"), expected)
    return runs


def compare(found, expected):
    """Hold what a run left against what one left that nobody signalled, which kept every step.

    Which steps lie there is the signals' doing: SIGUSR1 and a stop write the step they come in, and
    rotation counts those. Each of them must be that step's to the bit, the last one be there, and
    all else be equal: export, metrics, class pictures, store.
    """
    steps = {name for name in expected if name.startswith("checkpoints/")}
    last = {name for name in steps if name.split("/")[1] == max(steps).split("/")[1]}
    assert expected.keys() - steps | last <= found.keys()
    assert found == {name: expected.get(name) for name in found}


def test_signals_at_random_moments_lose_nothing(lives, job_file, tmp_path):
    signalled(forked(lives, job_file, tmp_path / "cache"), tmp_path, until=(3, 0))


@pytest.mark.slow
@pytest.mark.parametrize("quarter", range(4))
def test_280_signals_at_random_moments_lose_nothing(lives, job_file, tmp_path, emit, quarter):
    runs = signalled(forked(lives, job_file, tmp_path / "cache"), tmp_path, until=(70, 10))
    emit("signals", dict(runs.seen))
    emit("lives ended", dict(runs.ends))


def started(job_file, words, output):
    def free():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "dreambooth", "run", str(job_file), *words],
        stdout=output, stderr=output, env={**os.environ, "NO_COLOR": "1"}, preexec_fn=free,
    )  # fmt: skip


def real(job_file, processes, output):
    """Lives of whole `dbt run` processes, signalled once they have begun."""

    def live(name, signals, *options):
        log = job_file.parent / f"runs/{name}/run.log"
        said = log.read_text().count("run ") if log.exists() else 0
        words = [word for option in (f"name={name}", *options) for word in ("-o", option)]
        with output.open("w") as file:
            process = started(job_file, [*words, "--processes", str(processes)], file)
            until = time.monotonic() + 300
            while process.poll() is None and not (
                log.exists() and log.read_text().count("run ") > said
            ):
                assert time.monotonic() < until
                time.sleep(0.02)
            began, sent = time.monotonic(), []
            for after, number in signals:
                time.sleep(max(0.0, began + after - time.monotonic()))
                if process.poll() is None:
                    process.send_signal(number)
                    sent.append(number)
            status = process.wait(timeout=300)
        return status, output.read_text(), sent, time.monotonic() - began

    return live


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_to_real_runs_lose_nothing(job_file, tmp_path, processes, emit, monkeypatch):
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    live = real(job_file, processes, tmp_path / "output.txt")
    runs = signalled(live, tmp_path, until=(10, 1))
    emit("signals", dict(runs.seen))
    emit("lives ended", dict(runs.ends))
