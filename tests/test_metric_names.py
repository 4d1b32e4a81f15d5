"""What is logged has one name everywhere, and the guide has all of them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from dreambooth.engine.loop import run

GUIDE = Path(__file__).parents[1] / "plugins/guides/runs.md"
RICH = {
    "samples": {"every": 2, "per_prompt": 2, "prompts": [
        "a {identifier} {class_noun}", "blue {identifier}", "a {class_noun}", "a house"]},
    "metrics": ["diversity", "subject_similarity", "prompt_alignment", "prior_preservation",
                "perceptual_diversity", "drift", "copying"],
    "validation": {"every": 2},
    "optimizer": {"kind": "prodigy", "lr": 1.0},
    "findings": [],
}  # fmt: skip


def rich(small_job, *trackers, **sections):
    metrics = [
        m if m == "diversity" else {"kind": m, "encoder": "emoji-64-clip"} for m in RICH["metrics"]
    ]
    return small_job(**{**RICH, "metrics": metrics, "trackers": list(trackers), **sections})


def of_jsonl(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(line["step"], name): v for line in lines for name, v in line.items() if name != "step"}


def of_csv(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return {(int(r["step"]), r["name"]): float(r["value"]) for r in csv.DictReader(file)}


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"images": 0, "histograms": 0, "scalars": 0}
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance=everything)
    found.Reload()
    return found


def documented() -> list[re.Pattern[str]]:
    """Return the names in the guide's table; `<i>` and such stand for what differs."""
    section = GUIDE.read_text(encoding="utf-8").split("## What is logged")[1].split("\n## ")[0]
    table = "".join(line for line in section.splitlines() if line.startswith("|"))
    names = re.findall(r"`([a-z_]+/[^`]*)`", table)
    return [re.compile(re.sub(r"<\w+>", "[^/]+", name)) for name in names]


def test_files_and_tensorboard_agree_in_names_and_numbers_and_the_guide_has_them(small_job):
    pytest.importorskip("prodigyopt", reason="prodigyopt is not installed")
    board = {"kind": "tensorboard", "histograms": True}
    folder = run(rich(small_job, "jsonl", "csv", board)).folder
    lines = of_jsonl(folder)
    assert of_csv(folder) == lines
    events = events_of(folder)
    shown = {
        (event.step, tag): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }
    assert shown == pytest.approx(lines, rel=1e-6, abs=1e-7)
    names = {name for _, name in lines}
    patterns = documented()
    assert [name for name in names if not any(p.fullmatch(name) for p in patterns)] == []
    used = {p.pattern for p in patterns for name in names if p.fullmatch(name)}
    assert {p.pattern for p in patterns} - used == set()
    assert [e.step for e in events.Images("contact_sheet")] == [0, 2, 4]
    assert {"weights/unet", "weights/text_encoder"} <= set(events.Tags()["histograms"])
    assert [e.step for e in events.Histograms("weights/unet")] == [0, 2, 4]
    changed = [e.histogram_value.sum_squares for e in events.Histograms("weights/unet")]
    assert changed[0] != changed[2]


def test_a_wandb_run_read_back_has_the_same_names_pictures_and_job(
    small_job, monkeypatch, tmp_path
):
    wandb = pytest.importorskip(
        "wandb", reason="wandb is not installed: pip install 'dreambooth-trainer[wandb]'"
    )
    from wandb_files import history, records

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB__DISABLE_STATS", "true")
    monkeypatch.setenv("WANDB__DISABLE_MACHINE_INFO", "true")
    job = rich(small_job, "jsonl", {"kind": "wandb", "mode": "offline"}, metrics=["diversity"],
               optimizer={"kind": "adamw"})  # fmt: skip
    folder = run(job).folder
    wandb.teardown()
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    numbers, pictures = {}, {}
    for row in history(file):
        step = row.pop("step")
        for name, value in row.items():
            if name.endswith("/filenames"):
                pictures[step, name.removesuffix("/filenames")] = file.parent / "files" / value[0]
            elif isinstance(value, float | int) and not name.startswith(("samples", "contact")):
                numbers[step, name] = value
    assert numbers == pytest.approx(of_jsonl(folder))
    assert pictures.keys() == {(s, n) for s in (0, 2, 4) for n in ("samples", "contact_sheet")}
    with (
        Image.open(pictures[4, "contact_sheet"]) as sent,
        Image.open(folder / "contact-sheet.png") as kept,
    ):
        assert sent.convert("RGB").tobytes() == kept.convert("RGB").tobytes()
    [made] = [r.run for r in records(file) if r.WhichOneof("record_type") == "run"]
    config = {u.key: json.loads(u.value_json) for u in made.config.update if u.key != "_wandb"}
    assert config == json.loads((folder / "manifest.json").read_text())["job"]
