"""Memory counted on shapes is the memory a real computation takes."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from dreambooth.engine.cost.activations import AsComputed, Live, peak


def unet_of(tiny_model, device, checkpointing):
    config = UNet2DConditionModel.load_config(tiny_model / "unet")
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(config)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    return unet.train()


def inputs(device, rows=4):
    z = torch.zeros(rows, 4, 16, 16, device=device)
    t = torch.zeros(rows, dtype=torch.int64, device=device)
    return z, t, torch.zeros(rows, 77, 32, device=device)


def real_step(unet, dtype):
    z, t, text = inputs("cpu")
    enabled = dtype is not torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        out = unet(z, t, encoder_hidden_states=text).sample
    out.float().square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_on_shapes_is_one_on_numbers(tiny_model, dtype, checkpointing):
    unet = unet_of(tiny_model, "cpu", checkpointing)
    real = peak(lambda: real_step(unet, dtype), unet.parameters())
    unet = unet_of(tiny_model, "meta", checkpointing)
    mode = AsComputed(dtype)

    def step():
        z, t, text = inputs("meta")
        out = unet(z, t, encoder_hidden_states=text).sample
        mode.leave()
        mode.backward(out.float().square().sum())

    with mode:
        counted = peak(step, unet.parameters())
    assert all(p.grad is not None for p in unet.parameters())
    assert counted == pytest.approx(real, rel=0.1)


def test_a_step_by_sampling_and_pictures_through_the_vae(tiny_model):
    def made(device):
        config = AutoencoderKL.load_config(tiny_model / "vae")
        with torch.device(device):
            vae = AutoencoderKL.from_config(config)
        unet = unet_of(tiny_model, device, False)
        known = [*vae.parameters(), *unet.parameters()]
        z, t, text = inputs(device)
        pixels = torch.zeros(2, 3, 64, 64, device=device)
        with torch.no_grad():
            yield peak(lambda: unet(z, t, encoder_hidden_states=text), known)
            yield peak(lambda: vae.decode(z), known)
            yield peak(lambda: vae.encode(pixels), known)

    with AsComputed(torch.float32):
        counted = list(made("meta"))
    assert counted == pytest.approx(list(made("cpu")), rel=0.1)


def test_what_was_there_before_and_views_of_it_do_not_count():
    weight = torch.zeros(1000)
    with Live([weight]) as live:
        weight.view(10, 100).t()
        assert live.now == 0
        doubled = weight * 2
        half = doubled[:500]
        assert live.now == 4000
        del doubled
        assert live.now == 4000  # the view keeps all of it
        del half
        assert live.now == 0
    assert live.peak == 4000
