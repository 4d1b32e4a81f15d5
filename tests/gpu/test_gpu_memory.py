"""What the plan says of each phase, against what the card's allocator saw."""

from __future__ import annotations

import pytest
import torch

from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from test_no_waiting import JOBS

SHARE, ROOM = 0.15, 128 * 2**20
"""The plan may be off by this share, or by so many bytes, whichever is more."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["full", "lora"])
def test_every_phase_takes_what_is_planned(
    on_card, emoji, only_cuda, monkeypatch, emit, name, precision
):
    residency = pytest.importorskip("dreambooth.engine.cost.residency")
    measured: dict[str, int] = {}
    entered: list[str] = []
    enter = residency.Residency.enter

    def watched(self, phase, model):
        if entered:
            peak = torch.cuda.max_memory_allocated()
            measured[entered[-1]] = max(peak, measured.get(entered[-1], 0))
        enter(self, phase, model)
        entered.append(phase)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    monkeypatch.setattr(residency.Residency, "enter", watched)
    sections = {**emoji, **JOBS[name], "samples": {"every": 2, "per_prompt": 2}}
    train = {**sections.pop("train", {}), "steps": 4}
    job = on_card(precision, train=train, **sections)
    planned = {phase.phase: phase.total for phase in make_plan(job, Quiet()).phases}
    run(job)
    if entered:
        measured[entered[-1]] = torch.cuda.max_memory_allocated()
    for phase, seen in measured.items():
        emit(
            f"{name}, {precision}, {phase}", f"{seen / 2**20:.0f} MiB, {planned[phase] / 2**20:.0f}"
        )
        assert abs(planned[phase] - seen) <= max(SHARE * seen, ROOM), phase
    assert "training" in measured
