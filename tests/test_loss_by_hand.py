"""The engine's loss equals one computed by hand with plain diffusers and transformers calls."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.session import open_session
from dreambooth.engine.step import train_step
from dreambooth.helpers.random import generator
from dreambooth.job import Job

LR = 1e-3


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def model_folder(request, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    shutil.copytree(tiny_model, folder)
    config = folder / "scheduler/scheduler_config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps({**data, "prediction_type": request.param}))
    return folder


@pytest.fixture
def make_job(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, color in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200)]):
        image = Image.new("RGB", (64, 64), color)
        image.paste((255, 255, 0), (8 * i, 8, 8 * i + 24, 40))
        image.save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"picture {i} of {{identifier}} {{class_noun}}")

    def make(model, batch=1, accumulation=1, **options):
        sections = {
            "loss": {"kind": "prior_preservation", "prior_weight": 0.7},
            "prior": {"kind": "generated", "count": 4, "batch_size": 4},
            **options,
        }
        return Job(
            output=tmp_path / "runs",
            model={"kind": "stable_diffusion", "source": str(model)},
            subject={"identifier": "ohwx", "class_noun": "dog"},
            data={"kind": "folder", "path": pictures, "resolution": 64},
            sampler={"kind": "cfg", "steps": 2},
            optimizer={"kind": "adamw", "lr": LR},
            samples={"every": 0},
            train={
                "steps": 3,
                "batch_size": batch,
                "accumulation": accumulation,
                "precision": "fp32",
                "max_grad_norm": None,
            },
            **sections,
        )

    return make


def open_for(job, devices):
    precision = Precision("fp32", devices.device)
    ctx = EngineContext(job, devices.device, precision, job.folder, Quiet(), devices)
    return open_session(ctx, job.data.scan(ctx))


def plain_mse(unet, embeds, noisy, t, target):
    pred = unet(noisy, t, encoder_hidden_states=embeds).sample
    return ((pred - target) ** 2).mean(dim=(1, 2, 3))


def loss_by_hand(folder, session, batch, job):
    """The two halves apart, as the paper writes them: no code of ours but the drawn numbers."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    length = min(tokenizer.model_max_length, text.config.max_position_embeddings)
    v_prediction = scheduler.config.prediction_type == "v_prediction"
    halves, gamma = [], job.loss.min_snr_gamma
    for prior in (False, True):
        rows = [i for i, p in enumerate(batch.is_prior.tolist()) if p is prior]
        z, noise, t = batch.latents[rows], batch.draw.noise[rows], batch.draw.t[rows]
        ids = tokenizer(
            [batch.prompts[i] for i in rows],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        noisy = scheduler.add_noise(z, noise, t)
        target = scheduler.get_velocity(z, noise, t) if v_prediction else noise
        per_row = plain_mse(unet, text(ids)[0], noisy, t, target)
        if gamma is not None:
            abar = scheduler.alphas_cumprod[t]
            snr = abar / (1 - abar)
            clipped = snr.clamp(max=gamma)
            per_row = per_row * (clipped / (snr + 1) if v_prediction else clipped / snr)
        if job.loss.debiased:
            every = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
            weights = 1 / (every + 1) if v_prediction else every.clamp(max=1000) ** -0.5
            per_row = per_row * (weights / weights.mean())[t]
        halves.append(per_row.mean())
    return halves[0] + job.loss.prior_weight * halves[1]


@pytest.mark.parametrize("weights", [{}, {"min_snr_gamma": 5.0}, {"debiased": True}])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_loss_with_prior_preservation_equals_plain_diffusers(
    model_folder, make_job, batch_size, weights
):
    loss = {"kind": "prior_preservation", "prior_weight": 0.7, **weights}
    job = make_job(model_folder, batch_size, loss=loss)
    with open_devices(job.train) as devices:
        session = open_for(job, devices)
        batch = session.batches.make(0, 0)
        assert batch.prompts[batch_size:] == ["a photo of a dog"] * batch_size
        with torch.no_grad():
            expected = loss_by_hand(model_folder, session, batch, job)
        result = train_step(session)
    torch.testing.assert_close(result.loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.loss_instance + result.loss_prior, result.loss)


def test_the_update_equals_a_plain_training_step(model_folder, make_job):
    job = make_job(model_folder, 2)
    with open_devices(job.train) as devices:
        session = open_for(job, devices)
        batch = session.batches.make(0, 0)
        folder = model_folder
        unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
        text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        ids = tokenizer(
            batch.prompts,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
            max_length=min(tokenizer.model_max_length, text.config.max_position_embeddings),
        ).input_ids
        noisy = scheduler.add_noise(batch.latents, batch.draw.noise, batch.draw.t)
        v_prediction = scheduler.config.prediction_type == "v_prediction"
        velocity = scheduler.get_velocity(batch.latents, batch.draw.noise, batch.draw.t)
        target = velocity if v_prediction else batch.draw.noise
        rows = plain_mse(unet, text(ids)[0], noisy, batch.draw.t, target)
        (rows[:2].mean() + 0.7 * rows[2:].mean()).backward()
        gradients = {f"unet.{n}": p.grad for n, p in unet.named_parameters()}
        gradients |= {f"text_encoder.{n}": p.grad for n, p in text.named_parameters()}
        kept = {}
        step = session.state.optimizer.step

        def spy(*args, **kwargs):
            kept.update({n: p.grad.clone() for n, p in session.state.parameters.items()})
            return step(*args, **kwargs)

        session.state.optimizer.step = spy
        train_step(session)
    assert kept.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(kept[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_latents_are_drawn_from_the_vae_moments(model_folder, make_job):
    job = make_job(model_folder, 3)
    with open_devices(job.train) as devices:
        session = open_for(job, devices)
        batch = session.batches.make(0, 0)
    vae = AutoencoderKL.from_pretrained(model_folder / "vae").eval()
    names = sorted(batch.ids[:3])
    images = [np.array(Image.open(job.data.path / name)) for name in names]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        moments = vae.encode(pixels.float() / 127.5 - 1).latent_dist
    for row, name in enumerate(batch.ids[:3]):
        k = names.index(name)
        noise = torch.randn(moments.mean.shape[1:], generator=generator(0, "vae", row))
        expected = (moments.mean[k] + moments.std[k] * noise) * vae.config.scaling_factor
        torch.testing.assert_close(batch.latents[row], expected, rtol=1e-5, atol=1e-5)
        assert batch.prompts[row] == f"picture {name[0]} of ohwx dog"


@pytest.mark.parametrize("cache", [True, False])
def test_batch_four_equals_two_by_two(model_folder, make_job, cache):
    losses = {}
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        job = make_job(model_folder, batch, accumulation)
        train = job.train.model_copy(update={"cache": cache})
        job = job.model_copy(update={"train": train})
        with open_devices(job.train) as devices:
            session = open_for(job, devices)
            losses[batch] = torch.stack([train_step(session).loss for _ in range(3)])
    torch.testing.assert_close(losses[2], losses[4], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses[1], losses[4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train_text", [True, False])
def test_caches_change_nothing_but_the_time(model_folder, make_job, train_text):
    losses = []
    parts = ["unet", "text_encoder"] if train_text else ["unet"]
    for cache in (True, False):
        job = make_job(model_folder, 2, freezing={"kind": "components", "train": parts})
        job = job.model_copy(update={"train": job.train.model_copy(update={"cache": cache})})
        with open_devices(job.train) as devices:
            session = open_for(job, devices)
            assert bool(session.model.embeddings) is (cache and not train_text)
            losses.append(torch.stack([train_step(session).loss for _ in range(3)]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
