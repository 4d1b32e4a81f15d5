"""Equal to the bit on a card, with `train.deterministic`."""

from __future__ import annotations

import pytest

from dreambooth.engine.loop import run
from test_no_waiting import JOBS
from test_resume_exact import result_bytes
from test_run import cut

STEPS = 6


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["full", "lora"])
def test_cut_and_resumed_equals_straight_equals_again(on_card, monkeypatch, name, precision):
    sections = {**JOBS[name], "data": {"flip": True}, "checkpoints": {"every": 2}}
    train = {**sections.pop("train", {}), "steps": STEPS, "deterministic": True}

    def job(called):
        return on_card(precision, name=called, train=train, **sections)

    straight = result_bytes(run(job("straight")).folder, STEPS)
    assert result_bytes(run(job("again")).folder, STEPS) == straight
    cut(job("resumed"), 3, monkeypatch)
    assert result_bytes(run(job("resumed")).folder, STEPS) == straight


def test_the_second_card_is_used_alone(on_card, only_cuda):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("there is one card")
    before = torch.cuda.memory_allocated(0)
    torch.cuda.reset_peak_memory_stats(0)
    assert run(on_card(train={"device": "cuda:1"})).steps == 4
    assert torch.cuda.max_memory_allocated(0) == before
    assert torch.cuda.current_device() == 0
