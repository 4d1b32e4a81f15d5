"""Families at their published sizes: what the plan counts, and one that was really trained."""

from __future__ import annotations

import gc
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch

from dreambooth.engine.cost.fitting import held_against
from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.devices.precision import has_bf16_units
from dreambooth.engine.reporting import Quiet
from dreambooth_plugins.model import builtin, parts_of
from dreambooth_plugins.model.folder.clip_vocabulary import clip_vocabulary
from dreambooth_plugins.model.folder.loading import skeleton
from dreambooth_plugins.model.folder.source import Source
from dreambooth_plugins.model.folder.tokenizer import make_tokenizer, save_tokenizer
from test_residency import measured, off

GIB = 2**30
REAL = {
    # Configuration, parts, kind, and the denoiser's published millions of parameters.
    "sd1": ("sd15", parts_of.STABLE_DIFFUSION, "stable_diffusion", 859.5),
    "sd2": ("sd21", parts_of.STABLE_DIFFUSION, "stable_diffusion", 865.9),
    "sdxl": ("sdxl", parts_of.SDXL, "sdxl", 2567.5),
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """Make a folder of a family's real configuration whose weights are holes: names and shapes."""

    def make(family):
        config, parts, _, _ = REAL[family]
        folder = tmp_path_factory.mktemp(family) / "model"
        shutil.copytree(builtin.config_folder(config), folder)
        for part in parts:
            shapes = skeleton(Source(parts, folder), part.name).state_dict()
            header, end = {}, 0
            for name, like in shapes.items():
                size = like.numel() * 4
                header[part.file_key(name)] = {
                    "dtype": "F32", "shape": list(like.shape), "data_offsets": [end, end + size],
                }  # fmt: skip
                end += size
            text = json.dumps(header).encode()
            with (folder / part.name / f"{part.stem}.safetensors").open("wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                file.truncate(8 + len(text) + end)
            if part.tokenizer:
                tokenizer = make_tokenizer(folder / part.tokenizer, *clip_vocabulary())
                save_tokenizer(tokenizer, folder / part.tokenizer)
        return folder

    return make


@pytest.mark.parametrize(
    "family", ["sdxl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd1", "sd2"))]
)
def test_the_plan_at_real_size(small_job, empty, monkeypatch, family):
    from dreambooth_plugins.model.folder.loaded import LoadedFolder

    monkeypatch.setattr(LoadedFolder, "fingerprint", lambda self, part: part)  # gigabytes of holes
    _, _, kind, millions = REAL[family]
    job = small_job(
        model={"kind": kind, "source": str(empty(family))},
        data={"resolution": 512},
        freezing={"kind": "adapter", "train": ["denoiser"]},
        prior={"count": 2, "batch_size": 1},
        train={"precision": "bf16"},
        samples={"every": 2, "per_prompt": 1},
    )
    plan = make_plan(job, Quiet())
    parts = {part.name: part for part in plan.parts}
    denoiser = 2 * parts["unet"].parameters - 2 * parts["unet"].trainable
    frozen = (parts["unet"].parameters - parts["unet"].trainable) / 1e6
    assert frozen == pytest.approx(millions, rel=0.01)
    phases = {phase.phase: phase for phase in plan.phases}
    assert [*phases] == [
        "texts", "encoding", "class images", "class pictures", "training", "drawing", "export",
    ]  # fmt: skip
    texts = [2 * part.parameters for name, part in parts.items() if name.startswith("text")]
    assert phases["texts"].weights == max(texts)  # one encoder after the other, without the rest
    assert phases["encoding"].weights == phases["class pictures"].weights
    assert phases["encoding"].weights == 4 * parts["vae"].parameters
    trained = parts["unet"].trainable
    assert phases["class images"].weights == 2 * parts["unet"].parameters
    assert phases["training"].weights == denoiser + 4 * trained
    assert phases["drawing"].weights == denoiser + 4 * trained + 4 * parts["vae"].parameters
    assert phases["export"].total > 4 * millions * 1e6  # in float32, once
    assert phases["export"].total < 1.9 * 4 * millions * 1e6
    assert phases["training"].working > 2**28


@pytest.mark.slow
def test_what_fits_into_a_memory(small_job, empty):
    job = small_job(
        model={"kind": "stable_diffusion", "source": str(empty("sd1"))},
        data={"resolution": 512},
        prior="none",
        freezing={"kind": "components", "train": ["unet"]},
    )
    fit = held_against(job, 64 * GIB, Quiet())
    assert fit.fits
    assert not fit.alone
    fit = held_against(job, 12 * GIB, Quiet())
    assert not fit.fits
    assert fit.needs.total > 12 * GIB
    named = {need.options[0]: need for need in fit.alone}
    assert named["freezing.kind: adapter"].total < 12 * GIB
    assert [n.total for n in fit.alone] == sorted(n.total for n in fit.alone)
    assert fit.together is None  # one is enough
    tight = held_against(job, 4 * GIB, Quiet())
    assert tight.together is not None
    assert len(tight.together.options) > 1
    assert tight.together.total <= 4 * GIB
    assert held_against(job, GIB, Quiet()).together is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not has_bf16_units(torch.device("cpu")), reason="no bfloat16 units")
def test_sdxl_of_real_size_trains_within_20_gib(small_job, tmp_path, emit):
    """LoRA at 256 pixels in bfloat16: every phase as planned, and the file read back."""
    [line] = (s for s in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in s)
    if int(line.split()[1]) * 1024 < 20 * GIB:
        pytest.skip("20 GiB of memory have to be free")
    sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
    import models

    shared = os.environ.get("DREAMBOOTH_SDXL")
    folder = models.sdxl(Path(shared) if shared else tmp_path)
    gc.collect()
    job = small_job(
        model={"kind": "sdxl", "source": str(folder)},
        data={"resolution": 256},
        prior={"count": 1, "batch_size": 1},
        sampler={"kind": "cfg", "steps": 2},
        freezing={"kind": "adapter", "train": ["unet"], "method": {"kind": "lora", "rank": 4}},
        train={"steps": 3, "precision": "bf16"},
        samples={"every": 3, "per_prompt": 1, "prompts": ["a photo of {identifier}"]},
        validation={"every": 3, "rows": 1},
    )
    found = measured(job.resolved(), tmp_path)
    mib = {
        name: (found["planned"][name] >> 20, peak >> 20) for name, peak in found["measured"].items()
    }
    emit("MiB planned and measured", mib)
    emit(
        "most of the process, GiB",
        round((max(found["measured"].values()) + found["alone"]) / GIB, 2),
    )
    assert max(found["measured"].values()) + found["alone"] < 20 * GIB
    assert not off(found), found
    run = job.folder
    assert (run / "final/pytorch_lora_weights.safetensors").is_file()
    told = json.loads((run / "manifest.json").read_text())["result"]
    assert any("opened with diffusers" in str(check) for check in told.get("checks", [told]))
