"""Precision: `auto` measures on CPUs that could gain, and never guesses."""

from __future__ import annotations

import pytest
import torch

from dreambooth.engine import precision
from dreambooth.engine.precision import choose, time_matmuls

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_named_precision_is_taken(name):
    assert choose(name, CPU).name == name


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, "bf16"), (0.95, "fp32"), (2.0, "fp32")])
def test_auto_takes_bfloat16_on_a_cpu_only_where_it_is_clearly_faster(
    monkeypatch, seconds, expected
):
    monkeypatch.setattr(precision, "cpu_has_bf16_units", lambda: True)
    timed = choose("auto", CPU, lambda p: seconds if p.name == "bf16" else 1.0)
    assert timed.name == expected


def test_auto_is_float32_on_a_cpu_without_bfloat16_units(monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bf16_units", lambda: False)
    assert choose("auto", CPU, lambda p: 0.0).name == "fp32"


def test_autocast_computes_in_the_named_precision():
    a = torch.ones(2, 2)
    for name in ("fp32", "bf16"):
        chosen = choose(name, CPU)
        with chosen.autocast():
            assert (a @ a).dtype == chosen.dtype


def test_the_probe_times_something():
    assert time_matmuls(choose("fp32", CPU), channels=8, side=4) > 0.0
