"""Precision: what a job asks for, or a rule of its size and the device. Never a clock."""

from __future__ import annotations

import json

import pytest
import torch

from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.devices import automatic, precision
from dreambooth.engine.devices.automatic import (
    CELLS,
    PARAMETERS,
    Size,
    automatic_precision,
    precision_of,
    size_of,
)
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.jobs.identifiers import settled

CPU = torch.device("cpu")
LARGE = Size(PARAMETERS, CELLS)
SD15 = 859_520_964
EMBEDDED = 9_000_000


@pytest.mark.parametrize(
    ("device", "units", "size", "expected"),
    [
        ("cuda", True, Size(0, 0), "bf16"),
        ("cuda", False, Size(SD15, 4096), "fp16"),
        ("mps", False, Size(SD15, 4096), "fp32"),
        ("xpu", False, Size(SD15, 4096), "fp32"),
        # A CPU without units is slower in bfloat16 whatever the size.
        ("cpu", False, Size(SD15, 64 * 64), "fp32"),
        ("cpu", True, Size(SD15, 64 * 64), "bf16"),
        ("cpu", True, Size(SD15, 32 * 32), "bf16"),
        ("cpu", True, Size(SD15, 16 * 16), "fp32"),
        ("cpu", True, Size(EMBEDDED, 16 * 16), "fp32"),
        ("cpu", True, Size(EMBEDDED, 32 * 32), "bf16"),
        ("cpu", True, LARGE, "bf16"),
        ("cpu", True, Size(PARAMETERS - 1, CELLS), "fp32"),
        ("cpu", True, Size(PARAMETERS, CELLS - 1), "fp32"),
    ],
)
def test_the_table_of_auto(device, units, size, expected):
    assert automatic_precision(device, units, size) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, False),
        ({"avx2": True}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_units_are_read_from_the_cpus_flags(monkeypatch, flags, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert precision.has_bf16_units(CPU) is expected
    assert precision.has_bf16_units(torch.device("meta")) is False


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_named_precision_is_taken(small_job, name):
    assert precision_of(small_job(train={"precision": name}), CPU, "bf16").name == name


def test_auto_stays_what_a_run_began_in(small_job, monkeypatch):
    monkeypatch.setattr(automatic, "has_bf16_units", lambda device: False)
    job = small_job(train={"precision": "auto"})
    assert precision_of(job, CPU).name == "fp32"
    assert precision_of(job, CPU, "bf16").name == "bf16"


def test_the_size_is_the_denoisers_and_one_pictures(small_job, tiny_model):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet")
    job = small_job(data={"resolution": 64}, train={"batch_size": 4})
    assert size_of(job) == Size(sum(p.numel() for p in unet.parameters()), 16 * 16)


def test_autocast_computes_in_the_named_precision(small_job):
    a = torch.ones(2, 2)
    for name in ("fp32", "bf16"):
        chosen = precision_of(small_job(train={"precision": name}), CPU)
        with chosen.autocast():
            assert (a @ a).dtype == chosen.dtype


@pytest.mark.parametrize("pays", [True, False])
def test_plan_run_line_log_manifest_and_card_say_what_auto_became(small_job, monkeypatch, pays):
    monkeypatch.setattr(automatic, "has_bf16_units", lambda device: True)
    monkeypatch.setattr(automatic, "PARAMETERS", 1)
    monkeypatch.setattr(automatic, "CELLS", 64 if pays else 65)  # 32 pixels are 8 x 8 cells
    name = "bf16" if pays else "fp32"
    job = settled(small_job(train={"precision": "auto", "steps": 1}))
    plan = make_plan(job, Quiet())
    assert plan.precision == name
    result = run(job)
    assert f"run small on cpu ({name}), 1 steps" in (result.folder / "run.log").read_text()
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["machine"]["precision"] == name
    assert f"| precision | {name} |" in (result.final / "README.md").read_text()
    # Class images of that precision are the ones the plan looks for.
    assert make_plan(job, Quiet()).class_cached == plan.class_pictures


def test_a_run_that_goes_on_is_planned_in_the_precision_it_began_in(small_job, monkeypatch):
    run(small_job(train={"precision": "bf16", "steps": 1}))
    monkeypatch.setattr(automatic, "has_bf16_units", lambda device: False)
    job = small_job(train={"precision": "auto", "steps": 1})
    assert make_plan(job, Quiet()).precision == "bf16"
    assert make_plan(job, Quiet(), fresh=True).precision == "fp32"
