"""float16: updates that the loss scaler leaves out leave no trace, and files hold JSON alone."""

from __future__ import annotations

import json
import math

import pytest
import torch

from card import move_to_card
from dreambooth.engine.loop import record, run
from dreambooth.engine.step import Meter, train_step
from dreambooth.engine.watching.nonfinite import SMALLEST_SCALE
from dreambooth.errors import RunError
from dreambooth.interfaces import FreezingPolicy
from dreambooth_plugins.freezing import Components
from test_no_waiting import COMPONENTS, fused, trained, with_card  # noqa: F401

FP16 = {"precision": "fp16", "ema": {}, "steps": 4}
HUGE = 2.0**40
"""A loss scale at which every gradient overflows."""


def strict(text):
    """Parse JSON as its standard has it: no NaN, no Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def overflowing(s):
    """Let the next update overflow."""
    s.state.scaler._init_scale = HUGE
    return s


def test_an_update_the_scaler_leaves_out_leaves_no_trace(open_for, monkeypatch):
    mended = []
    monkeypatch.setattr(
        Components, "after_step", lambda self, model: mended.append(1), raising=False
    )
    s = overflowing(open_for("fp16", prior="none", train=FP16))
    before = {n: p.detach().clone() for n, p in s.state.parameters.items()}
    meter = Meter()
    result = train_step(s)
    record(meter, result)
    assert not math.isfinite(result.grad_norm)
    assert all(torch.equal(before[n], p) for n, p in s.state.parameters.items())
    assert all(torch.equal(before[n], average) for n, average in s.state.ema.items())
    assert not mended
    assert meter.state() == {"count": 0, **dict.fromkeys(meter.sums, 0.0)}
    s.state.scaler.update(2.0**4)
    record(meter, train_step(s))
    assert mended
    assert meter.state()["count"] == 1
    assert all(map(math.isfinite, meter.read().values()))
    assert any(not torch.equal(before[n], average) for n, average in s.state.ema.items())


def test_files_of_a_run_with_overflows_are_json(small_job, monkeypatch):
    monkeypatch.setattr(
        "dreambooth.engine.devices.precision.Precision.scaler",
        lambda self: torch.amp.GradScaler("cpu", init_scale=2.0**32, enabled=True),
    )
    folder = run(small_job(prior="none", train={**FP16, "steps": 24}, log={"every": 1})).folder
    rows = [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    empty = [row for row in rows if "train/loss" not in row]
    assert 0 < len(empty) < len(rows)
    assert all("train/grad_norm" not in row for row in empty)
    assert None not in {value for row in rows for value in row.values()}
    result = strict((folder / "manifest.json").read_text())["result"]
    state = strict((folder / "checkpoints/step-000024/state.json").read_text())
    for scalars in (result["scalars"], state["scalars"]):
        assert "train/loss" in scalars
        assert all(map(math.isfinite, scalars.values()))
    card = (folder / "final/README.md").read_text().lower()
    assert not any(word in card.split() for word in ("nan", "inf", "infinity", "null"))


def test_a_loss_that_is_not_finite_is_not_the_scalers_to_skip(small_job):
    job = small_job(
        prior="none",
        optimizer={"lr": 1e30},
        train={**FP16, "ema": None, "max_grad_norm": None, "steps": 40, "nonfinite": "skip"},
    )
    with pytest.raises(RunError, match="steps in a row are not finite"):
        run(job)


def test_gradients_that_overflow_at_any_scale_end_the_run(small_job, monkeypatch):
    monkeypatch.setattr(
        "dreambooth.engine.devices.precision.Precision.scaler",
        lambda self: torch.amp.GradScaler("cpu", init_scale=SMALLEST_SCALE / 2, enabled=True),
    )
    with pytest.raises(RunError, match="overflow float16"):
        run(small_job(prior="none", train=FP16))


@pytest.mark.parametrize("mends", [False, True])
def test_on_a_card_a_step_waits_at_most_once(open_for, with_card, monkeypatch, mends):  # noqa: F811
    if mends:
        monkeypatch.setattr(Components, "after_step", lambda *_: None, raising=False)
    assert mends or Components.after_step is FreezingPolicy.after_step
    sections = {"freezing": COMPONENTS, "train": {**FP16, "batch_size": 2}}
    _, card = trained(move_to_card(open_for("fp16", **sections)))
    assert sum(card.waits.values()) == (1 if mends else 0), "\n".join(card.waits)


def test_without_a_fused_optimizer_a_step_waits_once(open_for, with_card):  # noqa: F811
    optimizer = {"kind": "adamw", "implementation": "foreach"}
    sections = {"freezing": COMPONENTS, "optimizer": optimizer, "train": FP16}
    _, card = trained(move_to_card(open_for("fp16", **sections)))
    assert sum(card.waits.values()) == 1, "\n".join(card.waits)
