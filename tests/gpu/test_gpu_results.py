"""Class images, exports and several cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import yaml_text
from dreambooth.engine.loop import run
from dreambooth.files import cache_root
from test_no_waiting import COMPONENTS, JOBS, LORA

BENCH = Path(__file__).parents[1] / "bench"


def test_class_images_are_the_cpus(on_card, card, only_cuda, tmp_path, tiny_model, monkeypatch):
    drawn = []
    for device in ("cpu", card):
        monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / device))
        run(on_card(name=f"on-{device}", train={"device": device, "steps": 1}))
        [file] = cache_root().glob("class-latents/*/chunk-000000.safetensors")
        drawn.append(load_file(file)["latents"])
    torch.testing.assert_close(*drawn, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "sections",
    [
        {"freezing": COMPONENTS},
        {"freezing": LORA, "exports": ["lora", "merged"]},
        {**JOBS["word"], "exports": ["lora"]},
    ],
    ids=["full", "lora", "word"],
)
def test_exports_are_what_was_trained(on_card, sections, precision):
    result = run(on_card(precision, samples={"every": 2, "per_prompt": 1}, **sections))
    assert result.final.is_dir()
    assert result.checks


def test_two_cards_equal_one(on_card, card, only_cuda, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one card")
    train = {"steps": 6, "accumulation": 2}
    alone = run(on_card(name="alone", train=train, optimizer={"lr": 1e-4})).folder
    job = on_card(name="both", train={**train, "accumulation": 1}, optimizer={"lr": 1e-4})
    path = yaml_text.write(job, tmp_path / "both.yaml")
    command = [sys.executable, "-m", "dreambooth", "run", str(path), "--processes", "2"]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "NO_COLOR": "1"})
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone, job.folder)
    ]
    for a, b in zip(*rows, strict=True):
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-3)


@pytest.mark.skipif("PEER" not in os.environ, reason="PEER names no folder of diffusers' scripts")
def test_the_bench_against_the_script(only_cuda, tmp_path, emit):
    out = tmp_path / "bench.json"
    command = [
        sys.executable,
        BENCH / "bench.py",
        "--peer-script",
        os.environ["PEER"],
        "--out",
        out,
    ]
    only = "overhead,drawing,against_peer,lora,precision"
    subprocess.run([*map(str, command), "--only", only, "--work", str(tmp_path)], check=True)
    for row in json.loads(out.read_text())["rows"]:
        emit(row["what"], f"{row['value']} {row['unit']} {row['note']}")
        if "script" in row["what"] and row["unit"] == "x" and row["at_least"]:
            assert row["value"] >= 1.0, row["what"]
