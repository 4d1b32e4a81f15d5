"""Checkpoints: verified on load, rotated only when the new one is whole."""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from dreambooth import process
from dreambooth.engine.checkpoints import files
from dreambooth.engine.checkpoints.rotation import superseded
from dreambooth.errors import RunError
from dreambooth.job import Checkpoints


def write(folder, step, keep=2):
    tensors = {"trainable": {"unet.w": torch.full((3,), float(step))}}
    rotate = partial(superseded, Checkpoints(keep_last=keep), written=step)
    return files.save(folder, step, tensors, {"step": step}, rotate)


def test_what_was_saved_comes_back(tmp_path):
    write(tmp_path, 5)
    found = files.newest(tmp_path, print)
    assert found.numbers == {"step": 5}
    assert torch.equal(found.tensors["trainable"]["unet.w"], torch.full((3,), 5.0))


def test_tensors_that_share_memory_are_saved_whole(tmp_path):
    shared = torch.arange(6.0)
    tensors = {"optimizer": {"a": shared, "b": shared, "c": shared[2:], "d": torch.empty(0)}}
    files.save(tmp_path, 1, tensors, {}, lambda there: [])
    found = files.newest(tmp_path, print).tensors["optimizer"]
    assert found.keys() == tensors["optimizer"].keys()
    for name, tensor in tensors["optimizer"].items():
        assert torch.equal(found[name], tensor)


def test_the_same_checkpoint_is_not_written_again(tmp_path):
    first = write(tmp_path, 5)
    kept = first.stat().st_ino
    assert write(tmp_path, 5).stat().st_ino == kept
    flip(first / "trainable.safetensors")  # a damaged one is no longer the same
    assert write(tmp_path, 5).stat().st_ino != kept
    assert files.load(first).numbers == {"step": 5}
    other = {"trainable": {"unet.w": torch.zeros(3)}}
    files.save(tmp_path, 5, other, {"step": 5}, lambda there: [])
    assert not files.load(first).tensors["trainable"]["unet.w"].any()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_read_is_no_map_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 3000)
    tensors = {f"unet.{i}": torch.full((500,), float(i)) for i in range(5)}
    files.save(tmp_path, 1, {"optimizer": tensors}, {}, lambda there: [])
    found = files.newest(tmp_path, print).tensors["optimizer"]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_rotation_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 1000000):
        write(tmp_path, step)
    assert [s for s, _ in files.list_checkpoints(tmp_path)] == [3, 1000000]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_failed_write_keeps_every_older_one(tmp_path, monkeypatch, error):
    write(tmp_path, 1, keep=1)

    def full(*_):
        raise error

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(RunError, match="No space left"):
        write(tmp_path, 2, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def unlist(folder, name):
    sums = json.loads((folder / "checksums.json").read_text())
    del sums[name]
    (folder / "checksums.json").write_text(json.dumps(sums))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: flip(f / "trainable.safetensors"), "trainable.safetensors was changed"),
        (lambda f: (f / "state.json").unlink(), "state.json is missing"),
        (lambda f: (f / "state.json").write_text("{"), "state.json was changed"),
        (lambda f: (f / "checksums.json").unlink(), "checksums.json cannot be read"),
        (
            lambda f: (f / "checksums.json").write_text('{"../step-000001/state.json": "0"}'),
            "which is no file of a checkpoint",
        ),
        (lambda f: unlist(f, "state.json"), "does not name state.json"),
        (lambda f: unlist(f, "trainable.safetensors"), "does not name trainable.safetensors"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path, damage, said):
    write(tmp_path, 1)
    damage(write(tmp_path, 2))
    warnings = []
    assert files.newest(tmp_path, warnings.append).numbers == {"step": 1}
    assert "step-000002" in warnings[0]
    assert said in warnings[0]


def test_a_stop_that_comes_while_one_is_read_is_no_damage(tmp_path, monkeypatch):
    """The metrics after the one before would be cut away, and the run go on from this one later."""
    write(tmp_path, 1)
    write(tmp_path, 2)

    def as_c_code_does(file):
        with pytest.raises(process.Stopped):
            signal.raise_signal(signal.SIGTERM)
        raise SafetensorError("could not determine the shape")

    monkeypatch.setattr(files, "read_tensors", as_c_code_does)
    told = []
    with pytest.raises(process.Stopped), process.noted_signals():
        files.newest(tmp_path, told.append)
    assert not told


def test_no_checkpoint_is_none(tmp_path):
    assert files.newest(tmp_path / "absent", print) is None
