"""What goes wrong during a run: said plainly, nothing lost, and the run goes on afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from pydoc import locate

import pytest
import torch
from safetensors.torch import load_file

from dreambooth import process
from dreambooth.engine import events
from dreambooth.engine.checkpoints import files
from dreambooth.engine.loop import run
from dreambooth.errors import Interrupted, JobError, RunError
from test_run import Listening, StopAfter, assert_equal_weights, cut, lines, weights

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 48 MiB of its own; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount program")
    if done.returncode:
        pytest.skip("a disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder, left=0):
    """Leave `left` bytes of room."""
    room = os.statvfs(folder)
    count = room.f_bavail * room.f_frsize - left
    (folder / "filler").write_bytes(b"\0" * max(0, count))


MOMENTS = {
    "a checkpoint": (files, "save", r"cannot write checkpoint .*: No space left"),
    "the log": ("dreambooth_plugins.tracker.jsonl.JsonlWriter", "scalars", "no room left"),
    "a sample": (events, "write_pictures", r"cannot write samples into .*: No space left"),
    "the export": ("dreambooth_plugins.exporter.Diffusers", "write", "cannot write .*No space"),
    "run.log": ("dreambooth.engine.reporting.Logged", "pictures", "no room left"),
}


@pytest.mark.parametrize(("where", "name", "said"), MOMENTS.values(), ids=MOMENTS)
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    small_job, small_disk, monkeypatch, where, name, said
):
    options = {
        "checkpoints": {"every": 2, "keep_last": 1},
        "samples": {"every": 3, "per_prompt": 1},
        "train": {"steps": 6},
    }
    straight = run(small_job(name="straight", **options))
    job = small_job(name="full", output=small_disk, **options)
    target = locate(where) if isinstance(where, str) else where
    real, calls = getattr(target, name), []

    def on_a_full_disk(*args, **kwargs):
        calls.append(name)
        if len(calls) == (1 if name == "write" else 2):
            fill(small_disk)
            # A line still fits into the page its file has: let its disk be full at once.
            if name == "scalars":
                os.dup2(os.open("/dev/full", os.O_WRONLY), args[0]._file.fileno())
            elif name == "pictures":
                args[0]._path = Path("/dev/full")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, on_a_full_disk)
        with pytest.raises(RunError, match=said) as caught:
            run(job)
    assert "run the same command again" in caught.value.hint
    kept = files.list_checkpoints(job.folder / "checkpoints")
    for _, path in kept:
        files.load(path)  # whole
    (small_disk / "filler").unlink()
    result = run(job)
    assert_equal_weights(weights(straight.folder), weights(result.folder))
    one, two = (r.folder / "metrics.jsonl" for r in (straight, result))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_too_little_memory_names_the_options_that_help_most_first(small_job, monkeypatch, error):
    from dreambooth_plugins.model.stable_diffusion_loaded import LoadedStableDiffusion

    def greedy(self, z_t, t, cond):
        if z_t.device.type == "meta":
            return denoise(self, z_t, t, cond)
        raise error

    denoise = LoadedStableDiffusion.denoise
    monkeypatch.setattr(LoadedStableDiffusion, "denoise", greedy)
    train = {"batch_size": 8, "ema": {"decay": 0.9}}
    with pytest.raises(RunError, match="memory ran out; training this job takes") as caught:
        run(small_job(prior="none", train=train))
    options = [line for line in caught.value.hint.splitlines() if "would save" in line]
    sizes = [float(line.split("about ")[1].split()[0]) for line in options]
    assert sizes == sorted(sizes, reverse=True)
    assert {line.split(" would")[0] for line in options} == {
        "train.gradient_checkpointing: true",
        "train.precision: bf16",
        "train: {batch_size: 1, accumulation: 8}",
        "train.ema: null",
        "freezing.train: [unet]",
        "freezing.kind: adapter",
        "optimizer.kind: adamw8bit",
    }


def test_too_little_memory_while_drawing_names_the_batch_that_draws(small_job, monkeypatch):
    from dreambooth_plugins.model.stable_diffusion_loaded import LoadedStableDiffusion

    def greedy(self, latents):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(LoadedStableDiffusion, "decode", greedy)
    with pytest.raises(RunError) as caught:
        run(small_job(prior="none", samples={"every": 2, "batch_size": 8}))
    assert "samples.batch_size: 4 instead of 8" in caught.value.hint
    with pytest.raises(RunError) as caught:
        run(small_job(name="prior", prior={"seed": 5}))
    assert "prior.batch_size: 2 instead of 4" in caught.value.hint


class Exploding:
    """Makes the loss of some steps infinite."""

    def __init__(self, monkeypatch, steps):
        from dreambooth_plugins.loss import PriorPreservation

        rows, self.calls = PriorPreservation.rows, 0

        def exploding(loss, s):
            self.calls += 1
            return rows(loss, s) * (float("inf") if self.calls in steps else 1.0)

        monkeypatch.setattr(PriorPreservation, "rows", exploding)


def test_a_step_that_is_not_finite_is_skipped_on_request_and_named(small_job, monkeypatch):
    Exploding(monkeypatch, {2, 3})
    listening = Listening()
    train = {"nonfinite": "skip", "nonfinite_limit": 2, "steps": 4, "ema": {"decay": 0.5}}
    result = run(small_job(train=train), reporter=listening)
    said = [line for line in listening.lines if "is skipped" in line]
    assert [line.split(" is")[0] for line in said] == ["step 2", "step 3"]
    assert all(".png (timestep " in line and "class image 0 (timestep " in line for line in said)
    logged = lines(result.folder)
    assert [("train/loss" in line) for line in logged] == [True, False, False, True]
    assert all(tensor.isfinite().all() for tensor in weights(result.folder).values())


def test_too_many_steps_that_are_not_finite_stop_the_run(small_job, monkeypatch):
    Exploding(monkeypatch, {2, 3, 4})
    train = {"nonfinite": "skip", "nonfinite_limit": 2, "steps": 9}
    with pytest.raises(RunError, match=r"3 steps in a row are not finite; step 4: \d\.png"):
        run(small_job(train=train, checkpoints={"every": 1}))
    kept = [step for step, _ in files.list_checkpoints(small_job().folder / "checkpoints")]
    assert kept == [2, 3]


def test_weights_that_are_not_finite_never_reach_a_checkpoint(small_job, monkeypatch):
    # As on a GPU, where the loss is only looked at when it is logged.
    monkeypatch.setattr("dreambooth.engine.watching.nonfinite.require", lambda *_: None)
    Exploding(monkeypatch, {4})
    job = small_job(train={"steps": 9}, checkpoints={"every": 2}, log={"every": 100})
    with pytest.raises(RunError, match="not finite within the"):
        run(job)
    [(step, path)] = files.list_checkpoints(job.folder / "checkpoints")
    assert step == 2
    assert all(t.isfinite().all() for t in load_file(path / "trainable.safetensors").values())


@pytest.mark.parametrize("method", ["scalars", "images", "text", "flush", "close"])
def test_a_tracker_may_crash_anywhere(small_job, monkeypatch, method):
    from dreambooth_plugins.tracker.tensorboard_writer import TensorBoardWriter

    close = TensorBoardWriter.close

    def crash(self, *args):
        close(self)
        raise ZeroDivisionError("a fault of the tracker")

    monkeypatch.setattr(TensorBoardWriter, method, crash)
    job = small_job(trackers=["tensorboard", "jsonl"], samples={"every": 2, "per_prompt": 1})
    listening = Listening()
    result = run(job, reporter=listening)
    assert len([line for line in listening.lines if "a fault of the tracker" in line]) == 1
    assert len(lines(result.folder)) == 4


def test_a_changed_picture_meets_no_stale_latents(small_job, pictures):
    import json

    def entries(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        return [key for key in manifest["store"] if key.startswith("moments/")]

    first = run(small_job(name="first", prior="none"))
    (pictures / "0.png").write_bytes((pictures / "1.png").read_bytes())
    second = run(small_job(name="second", prior="none"))
    assert entries(first.folder) != entries(second.folder)
    assert lines(first.folder) != lines(second.folder)


@pytest.fixture
def interruptible():
    """Take SIGINT as a program in the foreground does: whoever runs the tests may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_leaves_at_once_and_the_run_is_whole(small_job, monkeypatch):
    options = {"train": {"steps": 6}, "checkpoints": {"every": 2}}
    straight = run(small_job(name="straight", **options))
    job = small_job(name="twice", **options)
    save_file, after_step = files.save_file, events.Events.after_step

    def first(self, result):
        after_step(self, result)
        if self._session.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    def second(tensors, path):
        save_file(tensors, path)
        if "step-000003" in str(path):
            time.sleep(process.SAME_REQUEST)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(events.Events, "after_step", first)
        patch.setattr(files, "save_file", second)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    assert [s for s, _ in files.list_checkpoints(job.folder / "checkpoints")] == [2]
    listening = Listening()
    result = run(job, reporter=listening)
    assert "resuming from step 2 of 6" in listening.lines
    assert_equal_weights(weights(straight.folder), weights(result.folder))


@pytest.mark.usefixtures("interruptible")
def test_signals_that_come_together_are_one_request(small_job, monkeypatch):
    after_step = events.Events.after_step

    def both(self, result):
        after_step(self, result)
        if self._session.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(events.Events, "after_step", both)
    with pytest.raises(Interrupted) as caught:
        run(small_job(train={"steps": 6}))
    assert caught.value.exit_code == 128 + signal.SIGINT
    kept = files.list_checkpoints(small_job().folder / "checkpoints")
    assert [step for step, _ in kept] == [3]


def test_going_back_to_a_checkpoint_sets_newer_ones_aside(small_job):
    options = {"train": {"steps": 6}, "checkpoints": {"every": 2, "keep_last": 9}}
    first = run(small_job(**options))
    before = weights(first.folder)
    listening = Listening()
    again = run(small_job(**options), resume_from="2", reporter=listening)
    assert "resuming from step 2 of 6" in listening.lines
    assert_equal_weights(before, weights(again.folder))
    aside = first.folder / "checkpoints/aside-1"
    assert sorted(p.name for p in aside.iterdir()) == ["step-000004", "step-000006"]
    assert [line["step"] for line in lines(again.folder)] == [1, 2, 3, 4, 5, 6]


def test_a_run_can_begin_at_another_runs_checkpoint(small_job, monkeypatch):
    options = {"train": {"steps": 6}, "checkpoints": {"every": 2}}
    first = run(small_job(name="first", **options))
    job = small_job(name="second", **options)
    path = str(first.folder / "checkpoints/step-000004")
    with pytest.raises(StopAfter):
        begin_and_die(job, path, monkeypatch)
    second = run(job)  # the plain command goes on from there, too
    assert_equal_weights(weights(first.folder), weights(second.folder))
    with pytest.raises(JobError, match="belongs to another run"):
        run(job, resume_from=path)


def die(session):
    raise StopAfter


def begin_and_die(job, path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "dreambooth.engine.loop.train_step", lambda _: (_ for _ in ()).throw(StopAfter)
        )
        run(job, resume_from=path)


def test_a_checkpoint_that_is_not_there_or_damaged_is_named(small_job, monkeypatch):
    job = small_job(train={"steps": 6}, checkpoints={"every": 2})
    cut(job, 5, monkeypatch)
    with pytest.raises(JobError, match="there is no checkpoint 3") as caught:
        run(job, resume_from="3")
    assert "it has: step-000002, step-000004" in caught.value.hint
    (job.folder / "checkpoints/step-000002/trainable.safetensors").unlink()
    with pytest.raises(RunError, match=r"step-000002 is damaged: trainable.safetensors is missing"):
        run(job, resume_from="step-000002")
