"""SDXL's loss and pictures equal those of plain diffusers calls: nothing of ours but the draws."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionXLPipeline
from PIL import Image

from dreambooth.engine.step import train_step
from dreambooth_plugins.model.tiny import tiny_folder

SIZE = [32, 48]
"""Height and width: latents are not square."""


@pytest.fixture
def folder(request, tmp_path, _own_cache):
    """The tiny model; with `v`, one that predicts v to zero terminal SNR."""
    where = tmp_path / "model"
    shutil.copytree(tiny_folder("tiny-sdxl", build=True), where)
    if getattr(request, "param", "") == "v":
        config = where / "scheduler/scheduler_config.json"
        data = json.loads(config.read_text())
        told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
        config.write_text(json.dumps({**data, **told, "timestep_spacing": "trailing"}))
    return where


@pytest.fixture
def pictures(tmp_path):
    """Three pictures of different shapes, so that each row is cropped in its own way."""
    where = tmp_path / "pictures"
    where.mkdir()
    for i, size in enumerate([(100, 60), (64, 90), (48, 32)]):
        image = Image.new("RGB", size, (200, 40 * i, 90))
        image.paste((255, 255, 0), (8 * i, 8, 8 * i + 24, 30))
        image.save(where / f"{i}.png")
        words = " ".join(["of"] * (1 + 3 * i))
        (where / f"{i}.txt").write_text(f"picture {words} {{identifier}} {{class_noun}}")
    return where


def model(folder):
    return {"kind": "sdxl", "source": str(folder)}


def loss_by_hand(folder, batch, weight):
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    schedule = DDPMScheduler.from_pretrained(folder / "scheduler")
    embeds, _, pooled, _ = pipe.encode_prompt(batch.prompts, do_classifier_free_guidance=False)
    z, noise, t = batch.latents, batch.draw.noise, batch.draw.t
    ids = torch.tensor(
        [[*g.original_size, *g.crop_top_left, *g.target_size] for g in batch.geometry],
        dtype=torch.float32,
    )
    v = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(z, noise, t) if v else noise
    added = {"text_embeds": pooled, "time_ids": ids}
    pred = pipe.unet(
        schedule.add_noise(z, noise, t), t, encoder_hidden_states=embeds, added_cond_kwargs=added
    ).sample
    rows = ((pred - target) ** 2).mean(dim=(1, 2, 3))
    of_class = batch.is_prior
    return rows[~of_class].mean() + weight * rows[of_class].mean()


@pytest.mark.parametrize("train", [["unet"], ["unet", "text_encoder", "text_encoder_2"]], ids=len)
@pytest.mark.parametrize("folder", ["epsilon", "v"], indirect=True)
def test_the_loss_of_three_and_three_rows(folder, open_for, train):
    session = open_for(
        model=model(folder),
        data={"resolution": SIZE, "crop": "random"},
        freezing={"kind": "components", "train": train},
        loss={"kind": "prior_preservation", "prior_weight": 0.7},
        train={"steps": 2, "batch_size": 3, "precision": "fp32"},
    )
    batch = session.batches.make(0, 0)
    assert len({g.original_size for g in batch.geometry}) > 2
    assert any(g.crop_top_left != (0, 0) for g in batch.geometry)
    assert batch.geometry[3].original_size == tuple(SIZE), "class rows have sizes of their own"
    with torch.no_grad():
        expected = loss_by_hand(folder, batch, 0.7)
    got = train_step(session)
    torch.testing.assert_close(got.loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("folder", ["epsilon", "v"], indirect=True)
def test_a_preview_is_the_picture_of_the_pipeline(folder, ctx, small_job):
    from dreambooth_plugins.sampler import ClassifierFreeGuidance

    job = small_job(model=model(folder), data={"resolution": SIZE})
    opened = job.model.open(ctx)
    solver_config = job.scheduler.open(opened.info).solver_config((8, 12), 3)
    sampler = ClassifierFreeGuidance(solver="ddim", steps=3, guidance_scale=4.0)
    ours = sampler.sample(
        opened, ["a photo of a dog"], seeds=[5], size=tuple(SIZE),
        solver_config=solver_config, ctx=ctx, negative="grey",
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.scheduler = DDIMScheduler.from_config(solver_config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    sizes = {"original_size": tuple(SIZE), "target_size": tuple(SIZE)}
    theirs = pipe(
        "a photo of a dog", negative_prompt="grey", latents=noise, num_inference_steps=3,
        guidance_scale=4.0, output_type="latent", height=SIZE[0], width=SIZE[1], **sizes,
    ).images  # fmt: skip
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.std()
    drawn = opened.decode(ours)
    decoded = pipe.vae.decode(theirs / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(drawn, decoded.detach(), rtol=1e-4, atol=1e-4)


def test_sizes_and_both_texts_matter(folder, ctx, small_job):
    """What the equalities above hold is really read: each input moves the prediction."""
    from dreambooth.interfaces import RowGeometry

    opened = small_job(model=model(folder)).model.open(ctx)
    z, t = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([400])
    [one, other] = opened.encode_prompts(["a dog", "a cat"])

    def predict(cond, geometry):
        with torch.no_grad():
            return opened.denoise(z, t, opened.condition(opened.collate([cond]), [geometry]))

    plain = RowGeometry((32, 48), (0, 0), (32, 48))
    base = predict(one, plain)
    for moved in (
        predict(one, RowGeometry((48, 32), (0, 0), (32, 48))),
        predict(one, RowGeometry((32, 48), (4, 0), (32, 48))),
        predict(one, RowGeometry((32, 48), (0, 4), (32, 48))),
        predict(type(one)({**one.tensors, "pooled": other.tensors["pooled"]}), plain),
        predict(type(one)({**one.tensors, "embeds": other.tensors["embeds"]}), plain),
    ):
        assert (moved - base).abs().max() > 1e-4
