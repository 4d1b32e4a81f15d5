"""SDXL trained through the program: resumed to the bit, with every prior, loss and export."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from dreambooth.engine.loop import run
from dreambooth.jobs.checks import preflight
from dreambooth.jobs.identifiers import settled

MODEL = {"kind": "sdxl", "source": "builtin:tiny-sdxl"}
LORA = {"kind": "adapter", "train": ["unet", "text_encoder", "text_encoder_2"]}
CASES = {
    "full": {"freezing": {"kind": "components", "train": ["unet", "text_encoder_2"]}},
    "previews": {"freezing": LORA, "samples": {"every": 2, "per_prompt": 1}},
    "mirror": {"freezing": LORA, "prior": "mirror"},
    "dco": {"freezing": LORA, "prior": "none", "loss": "dco"},
    "patterns": {"freezing": {"kind": "patterns", "train": ["text_encoder_2.*layers.1.mlp*"]}},
    "pivotal": {
        "freezing": {"kind": "pivotal", "train": ["unet"]},
        "subject": {"identifier": "<zyx>", "class_noun": "dog"},
    },
}


def losses(result):
    rows = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["train/loss"] for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_a_run_trains_exports_and_is_read_back(small_job, case):
    result = run(small_job(model=MODEL, train={"steps": 2}, **CASES[case]))
    found = losses(result)
    assert len(found) == 2
    assert all(0 < loss < 100 for loss in found)
    assert list((result.folder / "final").rglob("*.safetensors"))
    if case == "previews":
        assert list((result.folder / "samples").rglob("*.png"))


def test_a_resumed_run_is_the_run_that_was_not_interrupted(small_job, tmp_path):
    options = {"model": MODEL, "freezing": LORA, "checkpoints": {"every": 2}}
    whole = run(small_job(name="whole", train={"steps": 4}, **options))
    run(small_job(name="parts", train={"steps": 2}, **options))
    parts = run(small_job(name="parts", train={"steps": 4}, **options))
    assert losses(parts) == losses(whole)
    [one, other] = (
        load_file(r.folder / "final/pytorch_lora_weights.safetensors") for r in (whole, parts)
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.equal(other[name]), name


@pytest.mark.parametrize(
    ("source", "kind", "trained"),
    [
        ("builtin:tiny", "stable_diffusion", ["unet", "text_encoder"]),
        ("builtin:tiny-sdxl", "sdxl", ["denoiser"]),
    ],
)
def test_auto_is_written_out_before_jobs_are_compared(small_job, source, kind, trained):
    auto = small_job(
        model={"kind": "auto", "source": source}, freezing={"kind": "components", "train": "auto"}
    )
    named = small_job(
        model={"kind": kind, "source": source}, freezing={"kind": "components", "train": trained}
    )
    assert settled(auto).resolved() == settled(named).resolved()
    assert settled(named) == named
    assert not preflight(auto)
