"""Steps on a card: the CPU's losses, no waiting, half precision, fused updates."""

from __future__ import annotations

import math

import pytest
import torch

from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.loop import record, run
from dreambooth.engine.step import Meter, train_step
from test_no_waiting import CASES, JOBS
from test_run import lines

LOSSES = ("train/loss", "train/loss_instance", "train/loss_prior")


@pytest.mark.parametrize("base", ["tiny", "embedded"])
@pytest.mark.parametrize("name", ["full", "lora", "mirror", "dco"])
def test_losses_are_the_cpus(on_card, emoji, name, base):
    sections = {"optimizer": {"lr": 1e-5}, **(emoji if base == "embedded" else {}), **JOBS[name]}
    steps = {**sections.pop("train", {}), "steps": 3, "batch_size": 2}
    on_cpu = run(on_card(name="cpu", train={**steps, "device": "cpu"}, **sections))
    there = run(on_card(name="card", train=steps, **sections))
    for a, b in zip(lines(on_cpu.folder), lines(there.folder), strict=True):
        for key in LOSSES:
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-6), key


@pytest.mark.parametrize(("name", "precision"), [*CASES, ("full", "fp16"), ("lora", "fp16")])
def test_a_step_waits_for_nothing(open_for, card, only_cuda, name, precision):
    sections = {"data": {"caption_dropout": 0.5}, **JOBS[name]}
    train = {"batch_size": 2, **sections.pop("train", {}), "device": card}
    s, meter = open_for(precision, train=train, **sections), Meter()
    for _ in range(3):  # the first ones allocate, and learn what they will see again
        record(meter, train_step(s))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            record(meter, train_step(s))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(math.isfinite, meter.read().values()))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["full", "lora"])
def test_half_precision_trains(on_card, emoji, name, precision):
    sections = {**emoji, **JOBS[name], "optimizer": {"lr": 1e-4}, "log": {"every": 20}}
    train = {**sections.pop("train", {}), "steps": 20}
    whole = lines(run(on_card(name="whole", train=train, **sections)).folder)[-1]
    half = lines(run(on_card(precision, name="half", train=train, **sections)).folder)[-1]
    assert half["train/loss"] == pytest.approx(whole["train/loss"], rel=0.05)
    assert math.isfinite(half["train/grad_norm"])


def test_auto_takes_half_precision_and_the_fused_optimizer(on_card, open_for, card, only_cuda):
    wanted = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    job = on_card("auto")
    assert precision_of(job, torch.device(card)).name == wanted
    s = open_for(wanted, train={"device": card})
    assert s.state.optimizer.defaults["fused"]
    assert {p.device.type for p in s.state.parameters.values()} == {"cuda"}
    assert {p.dtype for p in s.state.parameters.values()} == {torch.float32}
