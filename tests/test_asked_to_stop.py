"""Asked to stop, a run saves first; what can be done later is done in its next life."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from dreambooth import process
from dreambooth.engine.checkpoints.files import list_checkpoints
from dreambooth.engine.loop import run
from dreambooth.engine.results import samples
from dreambooth.engine.watching import validation
from dreambooth.engine.watching.stopping import LeftOut, StopRequest
from dreambooth.errors import Interrupted
from test_run import Listening, assert_equal_weights, lines, weights

OPTIONS = {
    "train": {"steps": 6, "ema": {"decay": 0.9}},
    "freezing": {"kind": "components", "train": ["unet"]},
    "checkpoints": {"every": 100},
    "samples": {"every": 3, "per_prompt": 2, "batch_size": 1},
    "validation": {"every": 3, "rows": 4, "batch_size": 1},
}
ADVANCE, LOSSES = samples._Looking.advance, validation.row_losses


def steps_on_disk(job):
    return [step for step, _ in list_checkpoints(job.folder / "checkpoints")]


def drawn(job):
    folder = job.folder / "samples"
    return sorted(p.parent.name for p in folder.rglob("grid.png"))


def test_it_leaves_samples_and_validation_for_the_next_life(small_job, monkeypatch):
    straight = run(small_job(name="straight", **OPTIONS))
    job = small_job(name="stopped", **OPTIONS)
    # Validation has 4 class rows and 4 others, one by one; 3 prompts of 2 pictures take 2 steps
    # each. In a life's order: the one of step 0 and the second row at step 3; the third sampling
    # step at step 3, whose validation comes first; the same at step 6, after all of step 3's.
    for number, what, at, left in (
        (signal.SIGHUP, "validate", 8 + 2, 3),
        (signal.SIGTERM, "draw", 3, 3),
        (signal.SIGUSR2, "draw", 12 + 3, 6),
    ):
        looks = []
        with monkeypatch.context() as patch:
            patch.setattr(
                validation, "row_losses", asking(LOSSES, "validate", looks, (what, at, number))
            )
            patch.setattr(
                samples._Looking, "advance", asking(ADVANCE, "draw", looks, (what, at, number))
            )
            with pytest.raises(Interrupted) as caught:
                run(job)
        assert caught.value.exit_code == 128 + number
        assert steps_on_disk(job)[-1] == left
        assert (looks[-1], looks.count(what)) == (what, at)  # it left at once
        assert f"step-{left:06d}" not in drawn(job)
    run(job)
    assert lines(job.folder) == lines(straight.folder)
    assert_equal_weights(weights(straight.folder), weights(job.folder))
    assert drawn(job) == ["step-000000", "step-000003", "step-000006"]
    for path in (job.folder / "samples").rglob("0*.png"):
        assert pixels(path) == pixels(straight.folder / path.relative_to(job.folder))


def asking(call, name, looks, when):
    """Wrap what looks up so that a signal comes within its n-th call."""

    def asked(*args):
        looks.append(name)
        what, at, number = when
        if name == what and looks.count(name) == at:
            os.kill(os.getpid(), number)
        return call(*args)

    return asked


def pixels(path):
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def test_a_checkpoint_on_request_and_what_is_ignored_and_the_run_goes_on(small_job, monkeypatch):
    job = small_job(train={"steps": 4}, checkpoints={"keep_last": 9})
    step = Listening.step

    def ask(self, number):
        step(self, number)
        os.kill(os.getpid(), signal.SIGHUP)
        if number == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(Listening, "step", ask)
    listening = Listening()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        result = run(job, reporter=listening)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.steps == 4
    assert steps_on_disk(job) == [2, 4]
    assert "step 2 is saved, as a signal asked for" in listening.lines


class Late:
    """Two processes that agree on the call before, as `Agreement` does; one asks for `other`."""

    other = 0

    def __init__(self, devices):
        self._before = 0

    def largest(self, mine):
        answer, self._before = self._before, max(mine, self.other)
        return answer


class Two:
    """Two processes, of which the other one was asked for nothing."""

    world_size, device, is_main = 2, torch.device("cpu"), True

    def largest(self, numbers):
        return list(numbers)


def test_a_signal_in_the_last_step_of_several_processes_is_heard(monkeypatch):
    monkeypatch.setattr("dreambooth.engine.watching.stopping.Agreement", Late)
    noted = process.Signals()
    stop = StopRequest(Two(), noted)
    assert stop.agreed().stop == 0
    noted.stop = signal.SIGTERM  # in the last step
    assert stop.agreed().stop == 0  # the answer to the call before
    assert stop.settle() == signal.SIGTERM
    assert stop.agreed().stop == signal.SIGTERM
    with pytest.raises(LeftOut):
        stop.before_leisure()


def test_what_any_process_is_asked_reaches_all_and_a_stop_outweighs_a_checkpoint(monkeypatch):
    monkeypatch.setattr("dreambooth.engine.watching.stopping.Agreement", Late)
    monkeypatch.setattr(Late, "other", 1)  # the other one is asked for a checkpoint
    stop = StopRequest(Two(), process.Signals())
    stop.agreed()
    assert stop.agreed().save
    monkeypatch.setattr(Late, "other", 2 * signal.SIGHUP)
    stop.agreed()
    found = stop.agreed()
    assert (found.stop, found.save) == (signal.SIGHUP, False)
