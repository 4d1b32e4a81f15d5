from __future__ import annotations

import importlib.machinery
import json
from types import SimpleNamespace

import pytest
from PIL import Image

from dreambooth.plugins import registry
from dreambooth_plugins.tracker.wandb import Wandb
from wandb_files import history, records

wandb = pytest.importorskip(
    "wandb", reason="wandb is not installed: pip install 'dreambooth-trainer[wandb]'"
)

JOB = SimpleNamespace(name="my-dog", resolved=lambda: {"name": "my-dog", "train": {"steps": 4}})


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
