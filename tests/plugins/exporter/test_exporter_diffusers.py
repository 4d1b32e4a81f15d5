"""The `diffusers` exporter: what it writes loads back equal, and its check sees what does not."""

from __future__ import annotations

import json

import pytest

from dreambooth.interfaces import Artifact
from dreambooth_plugins.exporter import Diffusers
from dreambooth_plugins.model import StableDiffusion

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def trained(tiny_model, ctx):
    """A model whose UNet and text encoder have moved, and the artifact of that."""
    import torch

    model = StableDiffusion(source=str(tiny_model)).open(ctx)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, p in model.named_parameters("denoiser", "text_encoders"):
            p.add_(torch.randn(p.shape, generator=generator) * 0.01)
    names = dict(model.named_parameters("denoiser", "text_encoders"))
    return model, Artifact("weights", {name: p.detach() for name, p in names.items()})


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_an_export_comes_back_equal(trained, tmp_path, ctx, dtype):
    model, artifact = trained
    exporter = Diffusers(dtype=dtype)
    exporter.write(artifact, model, tmp_path, ctx, model.info.schedule)
    check = exporter.verify(artifact, model, tmp_path, ctx)
    assert check.ok, check.message
    assert check.figures["tensors"] == len(artifact.tensors)
    if dtype == "fp32":
        assert check.figures["denoiser"] < 1e-5
        assert check.figures["text"] < 1e-5
    else:
        assert 1e-5 < check.figures["denoiser"] < 0.1


def test_ema_weights_are_written_and_compared_without_changing_the_model(trained, tmp_path, ctx):
    import torch

    model, artifact = trained
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.parts["unet"].train()
    ema = Artifact("weights", {name: t * 0.9 for name, t in artifact.tensors.items()})
    exporter = Diffusers()
    exporter.write(ema, model, tmp_path, ctx, model.info.schedule)
    check = exporter.verify(ema, model, tmp_path, ctx)
    assert check.ok, check.message
    assert check.figures["denoiser"] < 1e-5
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert model.parts["unet"].training
    assert not model.parts["text_encoder"].training


def test_a_changed_weight_is_seen(trained, tmp_path, ctx):
    from safetensors.torch import load_file, save_file

    model, artifact = trained
    exporter = Diffusers()
    exporter.write(artifact, model, tmp_path, ctx, model.info.schedule)
    state = load_file(tmp_path / UNET)
    state["conv_out.bias"][0] += 1e-6
    save_file(state, tmp_path / UNET, metadata={"format": "pt"})
    check = exporter.verify(artifact, model, tmp_path, ctx)
    assert not check.ok
    assert "1 of" in check.message
    assert "unet.conv_out.bias" in check.message


def test_a_change_outside_what_was_trained_is_seen_in_the_prediction(trained, tmp_path, ctx):
    model, artifact = trained
    exporter = Diffusers()
    exporter.write(artifact, model, tmp_path, ctx, model.info.schedule)
    file = tmp_path / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "freq_shift": 1}))
    check = exporter.verify(artifact, model, tmp_path, ctx)
    assert not check.ok
    assert "more than" in check.message


def test_another_tokenizer_is_seen_in_the_text(trained, tmp_path, ctx):
    model, artifact = trained
    exporter = Diffusers()
    exporter.write(artifact, model, tmp_path, ctx, model.info.schedule)
    file = tmp_path / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = []
    file.write_text(json.dumps(content))
    check = exporter.verify(artifact, model, tmp_path, ctx)
    assert not check.ok
    assert check.figures["text"] > 0.01


def test_a_text_encoder_that_left_memory_is_read_and_leaves_again(tiny_model, tmp_path, ctx):
    model = StableDiffusion(source=str(tiny_model)).open(ctx)
    artifact = Artifact("weights", {n: p.detach() for n, p in model.named_parameters("unet")})
    exporter = Diffusers()
    exporter.write(artifact, model, tmp_path, ctx, model.info.schedule)
    assert exporter.verify(artifact, model, tmp_path, ctx).ok
    assert model.loaded() == ("unet",)


def test_a_partly_trained_half_precision_model_exports(tiny_model, tmp_path, make_ctx):
    import torch

    ctx = make_ctx(dtype=torch.bfloat16)
    model = StableDiffusion(source=str(tiny_model)).open(ctx)
    chosen = {n: p for n, p in model.named_parameters("unet") if ".attn2." in n}
    for p in chosen.values():
        p.data = p.data.float() * 1.1
    artifact = Artifact("weights", {n: p.detach() for n, p in chosen.items()})
    exporter = Diffusers()
    exporter.write(artifact, model, tmp_path, ctx, model.info.schedule)
    check = exporter.verify(artifact, model, tmp_path, ctx)
    assert check.ok, check.message
    assert max(check.figures[n] for n in ("text", "denoiser")) < 1e-5
    assert model.parts["unet"].conv_in.weight.dtype == torch.bfloat16  # as the run holds it


def test_a_frozen_weight_that_is_a_little_off_is_seen_in_a_half_precision_run(
    tiny_model, tmp_path, make_ctx
):
    import torch
    from safetensors.torch import load_file, save_file

    ctx = make_ctx(dtype=torch.bfloat16)
    model = StableDiffusion(source=str(tiny_model)).open(ctx)
    [(name, trained)] = [(n, p) for n, p in model.named_parameters("unet") if "conv_in.w" in n]
    trained.data = trained.data.float() * 1.1
    artifact = Artifact("weights", {name: trained.detach()})
    exporter = Diffusers()
    exporter.write(artifact, model, tmp_path, ctx, model.info.schedule)
    file = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    content = load_file(file)
    content["conv_out.weight"] *= 1.002  # bfloat16 rounds by more than that
    save_file(content, file)
    assert not exporter.verify(artifact, model, tmp_path, ctx).ok


def test_only_whole_weights_are_accepted():
    assert Diffusers.accepts == {"weights"}
