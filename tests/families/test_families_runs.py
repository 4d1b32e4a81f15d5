"""Each family trained through the program: every prior and loss, files read back, exact resume."""

from __future__ import annotations

import json
import os
import signal

import pytest
from PIL import Image
from safetensors.torch import load_file

import yaml_text
from dreambooth.engine.loop import run
from dreambooth.jobs.checks import preflight
from dreambooth.jobs.identifiers import settled
from test_kill import Lives, results

FAMILIES = {
    "sd1": {"kind": "stable_diffusion", "source": "builtin:tiny"},
    "sd2": {"kind": "stable_diffusion", "source": "builtin:tiny-sd2"},
    "sdxl": {"kind": "sdxl", "source": "builtin:tiny-sdxl"},
}
FAMILY = pytest.mark.parametrize("family", FAMILIES)
LORA = {"kind": "adapter", "train": ["denoiser", "text_encoders"]}
FULL = {"kind": "components", "train": ["denoiser", "text_encoders"]}
CASES = {
    "LoRA and class images": {"freezing": LORA},
    "full": {"freezing": FULL, "prior": "none"},
    "mirror and previews": {
        "freezing": LORA, "prior": "mirror", "samples": {"every": 1, "per_prompt": 1},
    },
}  # fmt: skip
ONLY_SDXL = {
    "dco": {"freezing": LORA, "prior": "none", "loss": "dco"},
    "patterns": {"freezing": {"kind": "patterns", "train": ["text_encoder_2.*layers.1.mlp*"]}},
    "pivotal": {
        "freezing": {"kind": "pivotal", "train": ["unet"]},
        "subject": {"identifier": "<zyx>", "class_noun": "dog"},
    },
}


def losses(result, name="train/loss"):
    rows = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)[name] for row in rows]


@pytest.mark.parametrize(
    ("family", "case"),
    [
        # Of SD 1.x most other tests are.
        *(pytest.param("sd1", case, marks=pytest.mark.slow) for case in CASES),
        *((f, case) for f in ("sd2", "sdxl") for case in CASES),
        *(("sdxl", case) for case in ONLY_SDXL),
    ],
)
def test_a_run_trains_exports_and_is_read_back(small_job, family, case):
    options = (CASES | ONLY_SDXL)[case]
    result = run(small_job(model=FAMILIES[family], train={"steps": 2}, **options))
    found = losses(result)
    assert len(found) == 2
    assert all(0 < loss < 100 for loss in found)
    assert result.checks, "nothing was read back"
    assert list((result.folder / "final").rglob("*.safetensors"))
    if "class images" in case:
        assert len(list((result.folder / "prior").glob("*.png"))) == 4
        assert all(loss > 0 for loss in losses(result, "train/loss_prior"))
    if "previews" in case:
        pictures = sorted((result.folder / "samples").rglob("000.png"))
        assert len(pictures) == 3  # the base's, and after each step
        assert len({Image.open(p).tobytes() for p in pictures}) == 3


@pytest.mark.parametrize("family", ["sdxl"])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(small_job, family):
    options = {"model": FAMILIES[family], "freezing": LORA, "checkpoints": {"every": 1}}
    whole = run(small_job(name="whole", train={"steps": 2}, **options))
    run(small_job(name="parts", train={"steps": 1}, **options))
    parts = run(small_job(name="parts", train={"steps": 2}, **options))
    assert losses(parts) == losses(whole)
    [one, other] = (
        load_file(r.folder / "final/pytorch_lora_weights.safetensors") for r in (whole, parts)
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.equal(other[name]), name


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")
@pytest.mark.parametrize("freezing", [LORA, FULL], ids=["LoRA", "full"])
@FAMILY
def test_killed_inside_a_write_it_ends_in_the_same_bits(small_job, tmp_path, family, freezing):
    """SIGKILL in the texts, the class images, a checkpoint, and the export, of one run."""

    def write(name):
        job = small_job(
            name=name, model=FAMILIES[family], freezing=freezing, train={"steps": 4},
            prior={"count": 4, "batch_size": 2}, checkpoints={"every": 1}, samples={"every": 2},
        )  # fmt: skip
        return yaml_text.write(job, tmp_path / f"{name}.yaml")

    lives = Lives(tmp_path)
    try:
        status, said = lives.run(["run", write("straight")], tmp_path / "cache-a")
        assert status == 0, said
        expected = results(tmp_path / "runs", "straight", tmp_path / "cache-a")
        path, cache = write("killed"), tmp_path / "cache-b"
        for moment in ("text:1", "class-latents:2", "checkpoints:3", "rename:2", "final:1"):
            status, said = lives.run(["run", path], cache, die_at=moment)
            assert status == -signal.SIGKILL, (moment, said)
        status, said = lives.run(["run", path], cache)
        assert status == 0, said
        assert results(tmp_path / "runs", "killed", cache) == expected
    finally:
        lives.close()


@pytest.mark.parametrize(
    ("family", "trained", "guidance"),
    [
        ("sd1", ["unet", "text_encoder"], 7.5),
        ("sd2", ["unet", "text_encoder"], 7.5),
        ("sdxl", ["denoiser"], 5.0),
    ],
)
def test_auto_is_written_out_before_jobs_are_compared(small_job, family, trained, guidance):
    source = FAMILIES[family]["source"]
    auto = small_job(
        model={"kind": "auto", "source": source}, freezing={"kind": "components", "train": "auto"},
        scheduler="auto", sampler={"kind": "auto", "steps": 7},
    )  # fmt: skip
    named = small_job(
        model=FAMILIES[family], freezing={"kind": "components", "train": trained},
        scheduler="ddpm", sampler={"kind": "cfg", "steps": 7, "guidance_scale": guidance},
    )  # fmt: skip
    assert settled(auto).resolved() == settled(named).resolved()
    assert settled(named) == named
    assert not preflight(auto)
