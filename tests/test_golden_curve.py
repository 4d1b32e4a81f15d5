"""The loss curve of the tiny model, held: a refactor changes nothing.

After a change that is meant to move it: DREAMBOOTH_GOLDEN=1 pytest tests/test_golden_curve.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dreambooth.engine.loop import run

GOLDEN = Path(__file__).parent / "golden/loss_curve.json"
KEYS = ("train/loss", "train/loss_instance", "train/loss_prior", "train/grad_norm")


def test_the_loss_curve_is_the_golden_one(small_job, tmp_path, monkeypatch):
    # A store of its own: a run also takes class images that another test drew in half precision.
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    job = small_job(
        train={"steps": 12, "batch_size": 2, "accumulation": 2},
        loss={"kind": "prior_preservation", "prior_weight": 0.5, "min_snr_gamma": 5.0},
        data={"flip": True, "caption_dropout": 0.2},
    )
    rows = [json.loads(r) for r in (run(job).folder / "metrics.jsonl").read_text().splitlines()]
    curve = {key: [row[key] for row in rows] for key in KEYS}
    if os.environ.get("DREAMBOOTH_GOLDEN"):
        GOLDEN.write_text(json.dumps(curve, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for key in KEYS:
        # Other CPUs round differently; twelve steps let that grow to some 1e-4.
        assert curve[key] == pytest.approx(golden[key], rel=2e-3), key
