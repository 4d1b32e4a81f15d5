"""A run is exact relative to the entries of the store that its manifest pins."""

from __future__ import annotations

import json
import shutil

import pytest

from dreambooth.engine.loop import run
from dreambooth.errors import RunError
from dreambooth.files import cache_root
from test_run import Listening, cut, lines


@pytest.fixture(autouse=True)
def store(tmp_path, tiny_model, monkeypatch):
    """A store of the test's own, with the tiny model in it."""
    there = cache_root() / "models"
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "store"))
    shutil.copytree(there, cache_root() / "models")
    return cache_root()


def pins(folder):
    return json.loads((folder / "manifest.json").read_text())["store"]


def test_a_set_that_was_made_otherwise_is_used_and_said(small_job):
    first = run(small_job(name="first"))
    listening = Listening()
    second = run(small_job(name="second", prior={"batch_size": 2}), reporter=listening)
    # Prompts that only the drawing of class images asks for were not asked for again.
    drawn, found = pins(first.folder), pins(second.folder)
    assert found == {name: pin for name, pin in drawn.items() if name in found}
    assert {name.split("/")[0] for name in drawn.keys() - found.keys()} <= {"text"}
    assert lines(second.folder) == lines(first.folder)
    said = [line for line in listening.lines if "was made with 4 rows at once (here 2)" in line]
    assert any("class-latents/" in line for line in said)


def test_a_resumed_run_demands_the_bits_it_began_with(small_job, store, monkeypatch):
    straight = run(small_job(name="straight"))
    cut(job := small_job(name="resumed"), 2, monkeypatch)
    for name in ("moments", "class-latents"):
        shutil.rmtree(store / name)
    assert lines(run(job).folder) == lines(straight.folder)  # made again, the same

    cut(job := small_job(name="refused"), 2, monkeypatch)
    manifest = job.folder / "manifest.json"
    record = json.loads(manifest.read_text())
    [name] = [name for name in record["store"] if name.startswith("class-latents/")]
    record["store"][name]["digest"] = "another"
    manifest.write_text(json.dumps(record))
    with pytest.raises(RunError, match="not the one this run began with"):
        run(job)


def test_a_run_from_before_entries_were_pinned_goes_on(small_job, monkeypatch):
    cut(job := small_job(), 2, monkeypatch)
    manifest = job.folder / "manifest.json"
    record = json.loads(manifest.read_text())
    record["store"] = sorted(record["store"])
    manifest.write_text(json.dumps(record))
    assert run(job).steps == 4
