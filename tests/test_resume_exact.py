"""N steps straight equal k + (N - k), to the bit, for any k and however often it is cut."""

from __future__ import annotations

import pytest

from dreambooth.engine.loop import run
from test_run import Listening, cut

STEPS = 7
FULL = {
    # 3 pictures, 2 x 2 rows a step: neither a step nor a cut ends with an epoch.
    "ema, accumulation, flips, dropout of captions, cosine": {
        "train": {"ema": {"decay": 0.9}, "accumulation": 2, "batch_size": 2},
        "data": {"caption_dropout": 0.3, "flip": True},
        "lr_schedule": {"kind": "cosine", "warmup_steps": 2},
        "log": {"every": 4},  # never at a checkpoint: the running means are in it
    },
    "random crops, class images alongside": {
        "data": {"crop": "random", "flip": True},
        "prior": {"when": "alongside", "reuse": 1, "count": 4, "batch_size": 2},
        "train": {"workers": 1},
    },
    "unet alone, cached texts, samples, min-SNR": {
        "freezing": {"kind": "components", "train": ["unet"]},
        "loss": {"kind": "prior_preservation", "min_snr_gamma": 5.0},
        "samples": {"every": 2, "per_prompt": 1},
        "metrics": ["diversity"],
    },
    "text encoder alone, no prior, skipping": {
        "freezing": {"kind": "components", "train": ["text_encoder"]},
        "prior": "none",
        "train": {"nonfinite": "skip", "accumulation": 3},
    },
    "8-bit moments": {
        "prior": "none",
        "optimizer": {"kind": "adamw8bit", "lr": 1e-3, "min_8bit_size": 300},
    },
    "a learning rate that is found": {
        "prior": "none",
        # So large a factor lets the estimate grow from the second step on.
        "optimizer": {"kind": "prodigy", "d0": 1e-4, "d_coef": 100.0},
        "lr_schedule": {"kind": "cosine", "warmup_steps": 2},
    },
    "text encoder first, both, then unet alone; average": {
        "freezing": {"kind": "components", "until": {"text_encoder": 4}, "start": {"unet": 2}},
        "train": {"ema": {"decay": 0.9}, "batch_size": 2},
        "samples": {"every": 3, "per_prompt": 1},
        "metrics": ["diversity"],
    },
    "adapters with dropout on both parts, the text encoder's for a while; average": {
        "freezing": {
            "kind": "adapter",
            "train": ["unet", "text_encoder"],
            "method": {"kind": "lora", "rank": 4, "dropout": 0.3},
            "lr": {"text_encoder": 5e-4},
            "until": {"text_encoder": 4},
        },
        "train": {"ema": {"decay": 0.9}, "accumulation": 2},
        "samples": {"every": 4, "per_prompt": 1},
    },
}
CUTS = [(2, 3, 5), *(pytest.param(cuts, marks=pytest.mark.slow) for cuts in [(1,), (4, 6)])]


def options_of(given):
    train = {"steps": STEPS, "precision": "fp32", **given.get("train", {})}
    return {**given, "train": train}


def result_bytes(folder, steps=STEPS):
    """Return every byte that must be equal: last checkpoint (weights, average, optimizer,
    numbers), numbers logged, and what was exported."""
    files = [*folder.glob(f"checkpoints/step-{steps:06d}/*"), folder / "metrics.jsonl"]
    files += folder.glob("final/**/*.safetensors")
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("given", FULL.values(), ids=FULL)
def test_cut_and_resumed_equals_straight(small_job, monkeypatch, given, cuts):
    options = options_of(given)
    straight = result_bytes(run(small_job(name="straight", **options)).folder)
    assert len(straight) >= 7
    # A checkpoint after the first and the fourth step: most cuts lose a step or two.
    job = small_job(name="cut", checkpoints={"every": 3}, **options)
    for step in cuts:
        cut(job, step, monkeypatch)
    listening = Listening()
    result = run(job, reporter=listening)
    began = max(cuts) // 3 * 3
    resumed = f"resuming from step {began} of {STEPS}" in listening.lines
    assert resumed == (began > 0)
    assert result_bytes(result.folder) == straight
