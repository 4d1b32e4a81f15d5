"""What SDXL is told to be by its files, and which files are told to be something else."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from dreambooth.errors import JobError
from dreambooth_plugins.model import SDXL, StableDiffusion, builtin, parts_of
from dreambooth_plugins.model.folder.loading import skeleton
from dreambooth_plugins.model.folder.source import Source
from dreambooth_plugins.model.sdxl_info import model_info
from dreambooth_plugins.model.tiny import tiny_folder

PUBLISHED = {"unet": 2567.46, "text_encoder": 123.06, "text_encoder_2": 694.66, "vae": 83.65}
"""Millions of parameters of stabilityai/stable-diffusion-xl-base-1.0."""


@pytest.mark.parametrize("part", PUBLISHED)
def test_the_shipped_configuration_has_the_published_number_of_parameters(part):
    source = Source(parts_of.SDXL, builtin.config_folder("sdxl"))
    count = sum(p.numel() for p in skeleton(source, part).parameters()) / 1e6
    assert count == pytest.approx(PUBLISHED[part], rel=0.01)


@pytest.mark.parametrize(("name", "prediction"), [("sdxl", "epsilon"), ("sdxl-v", "v_prediction")])
def test_shipped_configurations(name, prediction):
    info = model_info(Source(parts_of.SDXL, builtin.config_folder(name)))
    assert (info.family, info.prediction, info.resolution) == ("sdxl", prediction, 1024)
    assert info.latent.multiple == 32
    assert info.names["kohya"] == "sdxl_base_v1-0"
    assert bool(info.schedule.get("rescale_betas_zero_snr")) is (prediction != "epsilon")
    assert info.blocks == {
        "content": ("unet.up_blocks.0.attentions.0.*",),
        "style": ("unet.up_blocks.0.attentions.1.*",),
    }


@pytest.fixture
def folder(tmp_path, _own_cache):
    shutil.copytree(tiny_folder("tiny-sdxl", build=True), tmp_path / "model")
    return tmp_path / "model"


def edited(folder, name, **changes):
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "inpainting"),
        ("model_index.json", {"text_encoder": [None, None]}, "refiner"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"addition_embed_type": None}, "none of SDXL"),
        ("unet/config.json", {"cross_attention_dim": 64}, "give 32 and 48"),
        ("text_encoder_2/config.json", {"projection_dim": 41}, "sizes and pooled text"),
    ],
)
def test_what_is_no_base_model_is_told(folder, file, changes, said):
    with pytest.raises(JobError) as told:
        SDXL(source=str(edited(folder, file, **changes))).describe()
    assert said in f"{told.value.message} {told.value.hint}"


def test_each_kind_names_the_other(folder, tiny_model):
    with pytest.raises(JobError) as told:
        StableDiffusion(source=str(folder)).describe()
    assert "model.kind: sdxl" in told.value.hint
    with pytest.raises(JobError) as told:
        SDXL(source=str(tiny_model)).describe()
    assert "model.kind: stable_diffusion" in told.value.hint


def test_the_vae_never_runs_in_half_precision(folder, make_ctx):
    """One whose activations pass 65504, like the published one: latents stay what they are."""
    from safetensors.torch import load_file, save_file

    file = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["encoder.conv_in.weight"] *= 1e6
    tensors["encoder.conv_in.bias"] *= 1e6
    save_file(tensors, file)
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    full, half = (
        SDXL(source=str(folder)).open(make_ctx(dtype=dtype)).encode_images(pixels).mean
        for dtype in (torch.float32, torch.float16)
    )
    assert half.isfinite().all()
    assert torch.equal(full, half)
    vae = SDXL(source=str(folder)).open(make_ctx()).parts["vae"]
    with torch.no_grad():
        first = vae.encoder.conv_in(pixels)
    assert first.abs().max() > 65504, "it would have overflowed"


def test_gradients_reach_both_text_encoders(folder, ctx):
    from dreambooth.interfaces import RowGeometry

    model = SDXL(source=str(folder)).open(ctx)
    for _, p in model.named_parameters("text_encoders"):
        p.requires_grad_(True)
    model.enable_gradient_checkpointing(["unet", "text_encoder", "text_encoder_2"])
    cond = model.collate(model.encode_prompts(["a dog"]))
    cond = model.condition(cond, [RowGeometry((32, 32), (0, 0), (32, 32))])
    model.denoise(torch.ones(1, 4, 8, 8), torch.tensor([5]), cond).square().mean().backward()
    for part in ("text_encoder", "text_encoder_2"):
        weight = dict(model.parts[part].named_parameters())
        inner = [p for n, p in weight.items() if ".layers.0.mlp.fc1.weight" in n]
        assert inner[0].grad is not None, part
        assert inner[0].grad.abs().sum() > 0
