"""Where all processes of a run begin: at the main one's checkpoint, or not at all."""

from __future__ import annotations

import pickle
import threading

import pytest
import torch

from dreambooth.engine.checkpoints import files
from dreambooth.engine.checkpoints.resuming import newest_of_all, together
from dreambooth.errors import JobError, RunError, ToldElsewhere
from dreambooth.runs.folder import RunFolder


class Group:
    """Processes as threads: what `Devices` says of two of them."""

    def __init__(self, count=2):
        self.barrier, self.values = threading.Barrier(count, timeout=20), [None] * count

    def all(self, rank, value):
        self.values[rank] = pickle.dumps(value)  # as between processes
        self.barrier.wait()
        found = [pickle.loads(one) for one in self.values]
        self.barrier.wait()
        return found


class Process:
    def __init__(self, group, rank):
        self.group, self.rank, self.world_size = group, rank, 2
        self.is_main = rank == 0

    def share(self, value):
        return self.group.all(self.rank, value)[0]

    def join(self, values):
        return [value for one in self.group.all(self.rank, values) for value in one]


def on_both(work):
    """Return what `work(process)` gives, or raises, on each of two processes."""
    group, results = Group(), [None, None]

    def live(rank):
        try:
            results[rank] = work(Process(group, rank))
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def folder(path, *steps, value=0.0):
    for step in steps:
        tensors = {"trainable": {"unet.w": torch.full((3,), step + value)}}
        files.save(path / "checkpoints", step, tensors, {"step": step}, lambda there: [])
    return RunFolder(path)


def begin(tmp_path, here, there):
    folders = [folder(tmp_path / "0", *here), folder(tmp_path / "1", *there)]
    return on_both(lambda p: newest_of_all(p, folders[p.rank], print))


def test_all_go_on_from_the_main_processs_checkpoint(tmp_path):
    one, other = begin(tmp_path, (2, 4), (2, 4, 6))
    assert one.folder.name == other.folder.name == "step-000004"


def test_a_fresh_run_is_fresh_everywhere(tmp_path):
    assert begin(tmp_path, (), (2, 4)) == [None, None]


@pytest.mark.parametrize("there", [(), (2,)], ids=["no checkpoint", "an older one"])
def test_hosts_that_do_not_share_the_output_are_told(tmp_path, there):
    one, other = begin(tmp_path, (2, 4), there)
    assert isinstance(other, ToldElsewhere)
    assert isinstance(one, RunError)
    for error in (one, other):
        assert "not all processes have the checkpoint step-000004" in error.message
        assert "process 1 on" in error.message
        assert "output" in error.hint


def test_another_runs_checkpoint_of_that_step_is_none(tmp_path):
    folders = [folder(tmp_path / "0", 4), folder(tmp_path / "1", 4, value=1.0)]
    one, other = on_both(lambda p: newest_of_all(p, folders[p.rank], print))
    assert "it is another one" in one.message
    assert isinstance(other, ToldElsewhere)


def test_what_ends_the_main_process_ends_all_with_its_code(tmp_path):
    def refuse():
        raise JobError("another job", "undo it")

    one, other = on_both(lambda p: together(p, refuse))
    assert type(one) is JobError
    assert isinstance(other, ToldElsewhere)
    assert (one.exit_code, other.exit_code) == (2, 2)
    assert on_both(lambda p: together(p, lambda: p.rank)) == [0, 0]
