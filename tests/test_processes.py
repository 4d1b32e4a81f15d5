"""Several processes equal one; workers equal none; a signal or a death reaches all of them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

import yaml_text
from dreambooth.engine.loop import run
from dreambooth.errors import JobError
from dreambooth.plugins import registry_with
from dreambooth.process.launcher import environment, free_port

STEPS = 20


@pytest.fixture
def job_file(small_job, tmp_path):
    """Write a job file: `small_job`'s options, at a rate at which rounding stays small."""

    def write(**sections):
        job = small_job(**{"optimizer": {"lr": 1e-4}, **sections})
        return yaml_text.write(job, tmp_path / f"{job.name}.yaml")

    return write


def start(*args, env=None, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "dreambooth", "run", *map(str, args)],
        env={**os.environ, "NO_COLOR": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finish(process, code=0):
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal_to_rounding(
    one, other, names=("train/loss", "train/loss_prior", "train/grad_norm", "validation/loss")
):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in (n for n in names if n in a):
            assert a[name] == pytest.approx(b[name], rel=1e-5), (a["step"], name)


OPTIONS = {
    "data": {"flip": True, "caption_dropout": 0.2},
    "train": {"steps": STEPS, "precision": "fp32", "ema": {"decay": 0.9}, "accumulation": 2},
    "checkpoints": {"every": 7},
    "samples": {"every": 10, "per_prompt": 1},
    "validation": {"every": 5, "rows": 3},
}


def with_train(**values):
    return {**OPTIONS, "train": {**OPTIONS["train"], **values}}


ONE_SIDED = """
import os
import time
from typing import Literal

from dreambooth import Callback, hookimpl
from dreambooth.interfaces import Observer, Save, Stop


class Watching(Observer):
    def __init__(self, rank):
        self.rank = rank

    def on(self, event, view):
        if event == "step" and self.rank == 1 and str(view.step) == os.environ.get("HANG_AT"):
            time.sleep(600)
        if event != "step" or view.step not in {2, 3}:
            return None
        if self.rank == 0:
            return Save() if view.step == 3 else None
        return Stop("only here") if view.step == 2 else None


class OneSided(Callback):
    kind: Literal["one_sided"] = "one_sided"

    def open(self, ctx):
        return Watching(ctx.rank)


@hookimpl
def register_callbacks():
    return [OneSided]
"""


@pytest.fixture
def one_sided(tmp_path, monkeypatch):
    """Install a callback that asks for another thing in each process."""
    site = tmp_path / "site"
    info = site / "one_sided-0.1.0.dist-info"
    info.mkdir(parents=True)
    (site / "one_sided.py").write_text(ONE_SIDED)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: one-sided\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[dreambooth]\none-sided = one_sided\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    spec = importlib.util.spec_from_file_location("one_sided", site / "one_sided.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "one_sided", module)
    spec.loader.exec_module(module)
    with registry_with(module):  # here it is not on the path
        yield {"callbacks": [{"kind": "one_sided"}]}


def test_two_processes_equal_one_and_stop_and_resume_together(job_file, small_job, one_sided):
    options = {**with_train(batch_size=1), "checkpoints": {"every": 7, "keep_last": 9}}
    path = job_file(name="two", **options, **one_sided)
    folder = small_job(name="two").folder
    process = start(path, "--processes", "2")
    wait_for(folder / "checkpoints", process)
    process.send_signal(signal.SIGTERM)  # to the one that launched them: it is passed on
    said = finish(process, code=143)
    assert said.count("stopped by SIGTERM at step") == 1
    assert "only here" not in said  # the other process's wish; the main one's saved at step 3
    assert (folder / "checkpoints/step-000003").is_dir()
    said = finish(start(path, "--processes", "2"))
    assert "resuming from step" in said
    assert said.count("trained to step 20") == 1
    one = run(small_job(name="one", **{**with_train(batch_size=2), "optimizer": {"lr": 1e-4}}))
    assert_equal_to_rounding(metrics(folder), metrics(one.folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["processes"] == 2


def wait_for(path, process):
    until = time.monotonic() + 120
    while not (path.is_dir() and list(path.glob("step-*"))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_accelerates_launcher_starts_the_same_run(job_file, small_job):
    folder = {}
    for name in ("ours", "theirs"):
        path = job_file(name=name, **with_train())
        folder[name] = small_job(name=name).folder
        if name == "ours":
            finish(start(path, "--processes", "2"))
            continue
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        launch += ["--main_process_port", "0", "-m", "dreambooth", "run", str(path)]
        done = subprocess.run(
            [sys.executable, *launch], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done: 20 steps") == 1
    one, two = (folder[name] / "metrics.jsonl" for name in ("ours", "theirs"))
    assert one.read_bytes() == two.read_bytes()


TRAINED = {
    "text encoder": {"kind": "components", "train": ["unet", "text_encoder"]},
    "LoRA": {
        "kind": "adapter",
        "train": ["unet", "text_encoder"],
        "method": {"kind": "lora", "rank": 4, "alpha": 4},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("trained", TRAINED)
def test_two_processes_equal_one_whatever_trains(job_file, small_job, trained):
    """Caption dropout draws other prompts in each; each step is two forwards a process."""
    options = {"freezing": TRAINED[trained], "samples": {"every": 0}}
    path = job_file(name="two", **{**with_train(batch_size=1), **options})
    finish(start(path, "--processes", "2"))
    sections = {**with_train(batch_size=2), **options, "optimizer": {"lr": 1e-4}}
    one = run(small_job(name="one", **sections))
    assert_equal_to_rounding(metrics(small_job(name="two").folder), metrics(one.folder))


@pytest.mark.slow
def test_torchrun_starts_one_run_on_two_machines(job_file, small_job):
    """Two agents that meet over the loopback, each with a process, one output folder."""
    port = free_port()
    launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    launch += ["--rdzv-id", "two-machines", "-m", "dreambooth", "run"]
    path = job_file(name="theirs", **with_train())
    env = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    machines = [
        subprocess.Popen(
            [sys.executable, *launch, str(path)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [finish(machine) for machine in machines]
    assert "".join(said).count("done: 20 steps") == 1
    folder = small_job(name="theirs").folder
    assert json.loads((folder / "manifest.json").read_text())["processes"] == 2
    finish(start(job_file(name="ours", **with_train()), "--processes", "2"))
    assert (folder / "metrics.jsonl").read_bytes() == (
        small_job(name="ours").folder / "metrics.jsonl"
    ).read_bytes()


@pytest.mark.slow
def test_hosts_without_a_shared_output_are_told_instead_of_training_on(job_file, tmp_path):
    path = job_file(name="apart", **with_train(steps=4))
    outputs = [tmp_path / "host-0", tmp_path / "host-1"]
    finish(start(path, "--processes", "2", "-o", f"output={outputs[0]}", "-o", "train.steps=2"))
    port = free_port()
    processes = [
        start(path, "-o", f"output={output}", env=environment(rank, 2, port))
        for rank, output in enumerate(outputs)
    ]
    said = [finish(process, code=1) for process in processes]
    assert "not all processes have the checkpoint step-000002" in said[0]
    assert "process 1 on" in said[0]
    assert said[1].strip() == ""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["computes", "is stopped"])
def test_a_run_of_two_that_hangs_is_ended_in_words(job_file, small_job, one_sided, how):
    """The second process hangs in step 4, or does not answer: the run is over within 20 seconds."""
    options = with_train(steps=4000, hang_timeout=8.0)
    path = job_file(name="hangs", **{**options, "samples": {"every": 0}}, **one_sided)
    env = {"HANG_AT": "4"} if how == "computes" else {}
    process = start(path, "--processes", "2", env=env)
    folder = small_job(name="hangs").folder
    wait_for(folder / "checkpoints", process)
    if how == "is stopped":
        [*_, second] = children_of(process.pid)
        os.kill(second, signal.SIGSTOP)
    began = time.monotonic()
    said = " ".join(finish(process, code=1).split())
    assert time.monotonic() - began < 20
    assert "nothing has moved for" in said
    if how == "computes":
        assert "process 1 on" in said
        assert "one_sided.py:" in said
    else:
        assert "process 1 does not answer" in said
        assert "process 0 on" in said
    assert "is intact: run the same command again" in said
    assert "nothing has moved for" in (folder / "run.log").read_text()
    assert children_of(process.pid) == []


@pytest.mark.slow
def test_the_others_end_when_one_process_dies_and_the_run_goes_on_later(job_file, small_job):
    path = job_file(name="died", **with_train(steps=4000))
    process = start(path, "--processes", "2", "-o", "samples.every=0")
    wait_for(small_job(name="died").folder / "checkpoints", process)
    [*_, second] = children_of(process.pid)
    os.kill(second, signal.SIGKILL)
    began = time.monotonic()
    finish(process, code=137)
    assert time.monotonic() - began < 20
    assert children_of(process.pid) == []
    steps = [p.name for p in (small_job(name="died").folder / "checkpoints").glob("step-*")]
    last = max(int(name.removeprefix("step-")) for name in steps)
    said = finish(
        start(path, "--processes", "2", "-o", f"train.steps={last + 2}", "-o", "samples.every=0")
    )
    assert f"resuming from step {last} of" in said


def children_of(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def test_another_number_of_processes_must_keep_the_rows_of_a_step(small_job):
    from dreambooth.jobs.identifiers import by_model
    from dreambooth.runs.folder import RunFolder, check_resumable

    run(small_job(train={"batch_size": 2}))
    folder = RunFolder(small_job().folder)
    with pytest.raises(JobError, match="processes: 1 -> 2") as caught:
        check_resumable(folder, by_model(small_job(train={"batch_size": 2})), 2)
    assert "keep train.batch_size x train.accumulation x processes" in caught.value.hint
    changed = check_resumable(folder, by_model(small_job()), 2)
    assert changed == {"processes": (1, 2), "train.batch_size": (2, 1)}


def test_workers_change_nothing(small_job):
    options = {"data": {"crop": "random", "flip": True}, "prior": "none"}
    results = [
        run(small_job(name=f"w{n}", **options, train={"workers": n, "accumulation": 2}))
        for n in (0, 1, 3)
    ]
    first, *others = [(r.folder / "metrics.jsonl").read_bytes() for r in results]
    assert all(other == first for other in others)
    weights = [load_file(next((r.final / "unet").glob("*.safetensors"))) for r in results]
    assert all(w[name].equal(tensor) for w in weights for name, tensor in weights[0].items())


def test_five_pictures_and_accumulation_four_weigh_every_row_alike(small_job, pictures):
    # 5 pictures, 4 a step: the fifth would be a short group of its own in a trainer of epochs.
    for name in ("3", "4"):
        (pictures / f"{name}.png").write_bytes((pictures / "0.png").read_bytes() + name.encode())
    rows = {"steps": 5, "precision": "fp32"}
    one = run(small_job(name="four", train={**rows, "batch_size": 4}))
    two = run(small_job(name="accumulated", train={**rows, "accumulation": 4}))
    assert_equal_to_rounding(metrics(one.folder), metrics(two.folder), ("train/loss",))


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = environment(1, 4, 1234)
    assert (found["RANK"], found["WORLD_SIZE"], found["OMP_NUM_THREADS"]) == ("1", "4", "2")
