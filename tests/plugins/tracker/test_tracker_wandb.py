from __future__ import annotations

import importlib.machinery
import json
import struct
import zlib
from types import SimpleNamespace

import pytest
import wandb
from PIL import Image

from dreambooth.plugins import registry
from dreambooth_plugins.tracker.wandb import Wandb

JOB = SimpleNamespace(name="my-dog", resolved=lambda: {"name": "my-dog", "train": {"steps": 4}})
BLOCK, HEADER = 32768, struct.Struct("<IHB")


def records(path):
    """Yield the messages of a `.wandb` file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:
            at += left
            continue
        checksum, length, kind = HEADER.unpack_from(data, at)
        body = data[at + HEADER.size : at + HEADER.size + length]
        assert checksum == zlib.crc32(bytes([kind]) + body)
        parts += body
        at += HEADER.size + length
        if kind in (1, 4):  # whole, or the last of several
            yield Record.FromString(parts)
            parts = b""


def history(path):
    """Return the logged rows, without wandb's own entries."""
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {
                "/".join(i.nested_key) or i.key: json.loads(i.value_json)
                for i in record.history.item
            }
            rows.append({k: v for k, v in items.items() if not k.startswith("_")})
    return rows


@pytest.fixture
def context(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB__DISABLE_STATS", "true")
    monkeypatch.setenv("WANDB__DISABLE_MACHINE_INFO", "true")
    return SimpleNamespace(folder=tmp_path / "run", job=JOB)


def test_offline_run_holds_numbers_and_pictures_and_resume_keeps_its_id(context, capfd):
    tracker = Wandb(mode="offline", project="dogs", tags=["test"], run_name="rex")
    writer = tracker.open(context, 0)
    writer.scalars(10, {"train/loss": 0.5, "train/lr": 1e-6})
    writer.flush()
    writer.images(10, "samples", [Image.new("RGB", (8, 6), "red")], ["a red dog"])
    writer.close()
    again = tracker.open(context, 10)
    again.scalars(20, {"train/loss": 0.25})
    again.close()
    wandb.teardown()  # as at the process's exit: wandb's own process writes what it still holds

    files = sorted(context.folder.glob("wandb/offline-run-*/*.wandb"))
    name = (context.folder / "wandb" / "run-id.txt").read_text().strip()
    assert {path.name for path in files} == {f"run-{name}.wandb"}
    first, picture, second = [row for path in files for row in history(path)]
    assert first == {"step": 10, "train/loss": 0.5, "train/lr": 1e-6}
    assert second == {"step": 20, "train/loss": 0.25}
    assert picture["step"] == 10
    assert picture["samples/captions"] == ["a red dog"]
    saved = files[0].parent / "files" / picture["samples/filenames"][0]
    assert Image.open(saved).convert("RGB").getpixel((3, 3)) == (255, 0, 0)
    run = next(r.run for r in records(files[0]) if r.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name, list(run.tags)) == ("dogs", "rex", ["test"])
    config = {u.key: json.loads(u.value_json) for u in run.config.update}
    assert config["train"] == {"steps": 4}
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_disabled_mode_writes_no_run(context):
    writer = Wandb(mode="disabled").open(context, 0)
    writer.scalars(1, {"train/loss": 1.0})
    writer.close()
    assert not list(context.folder.glob("wandb/*run-2*"))


@pytest.mark.parametrize(
    "spec", [None, importlib.machinery.ModuleSpec("wandb", None, is_package=True)]
)
def test_check_says_how_to_install_wandb(monkeypatch, spec):
    monkeypatch.setattr("dreambooth_plugins.common.extras.find_spec", lambda name: spec)
    tracker = Wandb()
    job = SimpleNamespace(trackers=[object(), tracker])
    (problem,) = tracker.check(job, None)
    assert problem.at == ("trackers", 1)
    assert problem.hint == "pip install 'dreambooth-trainer[wandb]'"


def test_check_finds_nothing_where_wandb_is_installed():
    tracker = Wandb()
    assert list(tracker.check(SimpleNamespace(trackers=[tracker]), None)) == []


def test_wandb_is_registered():
    assert registry().kinds("tracker")["wandb"] is Wandb
