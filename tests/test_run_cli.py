"""`dbt run` and `dbt sample` as a person meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from dreambooth.helpers.units import file_size
from dreambooth.jobs.loading import dump_job

QUIET = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"}


def free_to_interrupt():
    """Give a child SIGINT back: whoever runs the tests in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def job_file(small_job, tmp_path):
    def write(**sections):
        path = tmp_path / "job.yaml"
        path.write_text(dump_job(small_job(**sections)))
        return path

    return write


def test_a_run_shows_its_plan_its_progress_and_what_comes_next(dbt, job_file, tmp_path):
    done = dbt("run", job_file(samples={"every": 4, "per_prompt": 1}), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in (
        "images        3 used, 0 left out",
        "class images  4",
        "unet",
        "step 4/4  loss",
        "checked  diffusers:",
        "dbt sample runs/small 'a photo of ohwx dog'",
    ):
        assert text in done.stdout
    assert re.search(r"^done: 4 steps in \d+ s$", done.stdout, re.MULTILINE)
    size = sum(f.stat().st_size for f in (tmp_path / "runs/small/final").rglob("*") if f.is_file())
    assert f"result   runs/small/final ({file_size(size)})" in done.stdout
    again = dbt("run", tmp_path / "job.yaml", cwd=tmp_path)
    assert "this run is finished: 4 steps" in again.stdout
    assert "-o train.steps=8" in again.stdout


def test_a_dry_run_stops_at_the_plan(dbt, job_file, tmp_path):
    done = dbt("run", job_file(), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "about" in done.stdout
    assert "optimizer" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_sample_draws_any_prompt_with_its_settings_in_the_files(dbt, job_file, tmp_path):
    assert dbt("run", job_file(), cwd=tmp_path).returncode == 0
    first = dbt("sample", "runs/small", "{identifier} on the moon", "-n", "2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "runs/small/samples/drawn-001"
    with Image.open(folder / "001.png") as picture:
        facts = json.loads(picture.text["dreambooth"])
        pixels = picture.tobytes()
    assert facts["prompt"] == "ohwx on the moon"
    assert facts["sampler"]["steps"] == 2
    with Image.open(folder / "grid.png") as grid:
        assert grid.size == (64, 32)
    again = dbt("sample", "runs/small", "ohwx on the moon", "-n", "2", cwd=tmp_path)
    assert again.returncode == 0
    with Image.open(tmp_path / "runs/small/samples/drawn-002/001.png") as picture:
        assert picture.tobytes() == pixels
    options = ["--guidance", "1", "--steps", "3", "--size", "40x32", "--seed", "9", "--out", "o"]
    assert dbt("sample", "runs/small", "a dog", *options, cwd=tmp_path).returncode == 0
    with Image.open(tmp_path / "o/000.png") as picture:
        assert picture.size == (32, 40)


def test_sample_of_no_run_says_so(dbt, tmp_path):
    done = dbt("sample", ".", "a dog", cwd=tmp_path)
    assert done.returncode == 2
    assert "is not a run" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_and_says_how_to_go_on(dbt, job_file, tmp_path, number, code):
    path = job_file(train={"steps": 5000})
    env = {**os.environ, **QUIET, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "dreambooth", "run", str(path)]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=free_to_interrupt,
    ) as process:
        deadline = time.monotonic() + 120
        while "step 3/" not in process.stdout.readline():
            assert time.monotonic() < deadline
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "run the same command again" in err
    assert "Traceback" not in err
    [checkpoint] = (tmp_path / "runs/small/checkpoints").iterdir()
    done = int(checkpoint.name.removeprefix("step-"))
    rest = dbt("run", path, "-o", f"train.steps={done + 1}", cwd=tmp_path)
    assert f"resuming from step {done} of {done + 1}" in rest.stdout, rest.stderr
    assert rest.returncode == 0


@pytest.mark.parametrize("reader", ["tee log", pytest.param("head -n 3", marks=pytest.mark.slow)])
def test_ctrl_c_saves_where_the_reader_of_the_output_has_gone(job_file, tmp_path, reader):
    path = job_file(train={"steps": 5000})
    line = f"{sys.executable} -m dreambooth run {path} 2>&1 | {reader}; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, **QUIET, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        ["bash", "-c", f"trap : INT; {line}"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.DEVNULL,
        preexec_fn=free_to_interrupt,
        process_group=0,
    ) as process:
        deadline = time.monotonic() + 120
        metrics = tmp_path / "runs/small/metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the reader ends, too
        assert process.wait(timeout=120) == 130
    [checkpoint] = (tmp_path / "runs/small/checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("step-")) >= 3


def test_ctrl_c_before_training_keeps_what_is_done_and_says_so(job_file, tmp_path):
    path = job_file(prior={"count": 4000, "batch_size": 2})
    env = {**os.environ, **QUIET, "PYTHONUNBUFFERED": "1", "DREAMBOOTH_CACHE": str(tmp_path / "c")}
    command = [sys.executable, "-m", "dreambooth", "run", str(path)]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=free_to_interrupt,
    ) as process:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "c").glob("class-latents/*/chunk-*"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command again" in err
    assert "Traceback" not in err
    plan = {**env, "DREAMBOOTH_CACHE": str(tmp_path / "c")}
    done = subprocess.run(
        [*command, "--dry-run"], cwd=tmp_path, env=plan, capture_output=True, text=True, check=True
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith("class images")]
    assert int(line.split(", ")[1].split()[0]) >= 4


def test_sample_draws_from_the_newest_weights_and_says_which(dbt, job_file, tmp_path):
    path = job_file(train={"steps": 2}, checkpoints={"every": 1})
    assert dbt("run", path, cwd=tmp_path).returncode == 0
    drawn = dbt("sample", "runs/small", "a dog", "-n", "1", cwd=tmp_path)
    assert "1 picture from final (step 2) in" in drawn.stdout
    (tmp_path / "runs/small/final/unet/config.json").write_text("")
    drawn = dbt("sample", "runs/small", "a dog", "-n", "1", cwd=tmp_path)
    assert "1 picture from step-000002 in" in drawn.stdout
    again = dbt("sample", "runs/small", "a dog", "--out", "runs/small/final", cwd=tmp_path)
    assert again.returncode == 2
    assert "holds something already" in again.stderr
    mended = dbt("run", path, cwd=tmp_path)
    assert "checked  diffusers" in mended.stdout
    assert "this run is finished" not in mended.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("schema", "-o", "/proc/x/y"), "/proc/x"),
        (("init", "/proc/x", "--example", "fox"), "/proc/x"),
        (("sample", "nowhere", "a dog"), "nowhere is not there"),
        (("sample", "job.yaml", "a dog"), "job.yaml is a file"),
    ],
)
def test_paths_that_cannot_be_are_named_without_a_traceback(dbt, job_file, tmp_path, args, said):
    job_file()
    done = dbt(*args, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
