"""Loss and pictures equal those of plain diffusers calls: nothing of ours but the draws."""

from __future__ import annotations

import json
import shutil

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image

from dreambooth.engine.step import train_step
from dreambooth_plugins.model.tiny import tiny_folder

SIZE = [32, 48]
"""Height and width: latents are not square."""
CASES = {
    "sd1": ("stable_diffusion", "tiny", {}),
    "sd2": ("stable_diffusion", "tiny-sd2", {}),
    "sdxl": ("sdxl", "tiny-sdxl", {}),
    "sdxl-v": (
        "sdxl",
        "tiny-sdxl",
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ),
}
"""Kind, built-in model, and what its scheduler_config.json says instead: SD 2.x predicts v."""
TRAINED = {
    "denoiser": ["denoiser"],
    "all": ["denoiser", "text_encoders"],
}


@pytest.fixture(params=CASES)
def folder(request, tmp_path, _own_cache):
    """A tiny model of each family."""
    _, name, changes = CASES[request.param]
    where = tmp_path / "model"
    shutil.copytree(tiny_folder(name, build=True), where)
    config = where / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return where


@pytest.fixture
def sdxl(tmp_path, _own_cache):
    return shutil.copytree(tiny_folder("tiny-sdxl", build=True), tmp_path / "model")


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
    return {"kind": "auto", "source": str(folder)}


def opened(folder):
    """The pipeline of diffusers that the folder names."""
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    options = {"add_watermarker": False} if "XL" in name else {}
    return getattr(diffusers, name).from_pretrained(folder, **options)


def texts_of(pipe, prompts, rows):
    """What the UNet is told by the pipeline's own code, of prompts and of rows' sizes."""
    found = pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if len(found) == 2:
        return {"encoder_hidden_states": found[0]}
    ids = [[*g.original_size, *g.crop_top_left, *g.target_size] for g in rows]
    added = {"text_embeds": found[2], "time_ids": torch.tensor(ids, dtype=torch.float32)}
    return {"encoder_hidden_states": found[0], "added_cond_kwargs": added}


def rows_by_hand(folder, batch):
    """Squared errors [B, C, h, w] by plain diffusers calls."""
    pipe = opened(folder)
    schedule = DDPMScheduler.from_pretrained(folder / "scheduler")
    z, noise, t = batch.latents, batch.draw.noise, batch.draw.t
    v = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(z, noise, t) if v else noise
    told = texts_of(pipe, batch.prompts, batch.geometry)
    return (pipe.unet(schedule.add_noise(z, noise, t), t, **told).sample - target) ** 2


def loss_by_hand(folder, batch, weight):
    rows = rows_by_hand(folder, batch).mean(dim=(1, 2, 3))
    of_class = batch.is_prior
    return rows[~of_class].mean() + weight * rows[of_class].mean()


@pytest.mark.parametrize("train", TRAINED)
def test_the_loss_of_three_and_three_rows(folder, open_for, train):
    session = open_for(
        model=model(folder),
        data={"resolution": SIZE, "crop": "random"},
        freezing={"kind": "components", "train": TRAINED[train]},
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


def test_the_masked_loss_of_three_and_three_rows(folder, pictures, open_for):
    for i, size in enumerate([(100, 60), (64, 90), (48, 32)]):
        mask = Image.new("L", size, 0)
        mask.paste(255, (8 * i, 8, 8 * i + 24, 30))
        mask.save(pictures / f"{i}.mask.png")
    session = open_for(
        model=model(folder),
        data={"resolution": SIZE, "crop": "random", "mask": "file"},
        freezing={"kind": "components", "train": ["denoiser"]},
        loss={"kind": "masked", "prior_weight": 0.7, "floor": 0.25},
        train={"steps": 2, "batch_size": 3, "precision": "fp32"},
    )
    batch = session.batches.make(0, 0)
    assert 0 < float(batch.mask[:3].mean()) < 0.9
    with torch.no_grad():
        errors = rows_by_hand(folder, batch).mean(1)
    weights = 0.25 + 0.75 * batch.mask[:, 0]
    rows = (weights * errors).sum((1, 2)) / weights.sum((1, 2))
    expected = rows[:3].mean() + 0.7 * rows[3:].mean()
    torch.testing.assert_close(train_step(session).loss, expected, rtol=1e-5, atol=1e-5)


def test_a_preview_is_the_picture_of_the_pipeline(folder, ctx, small_job):
    from dreambooth_plugins.sampler import ClassifierFreeGuidance

    job = small_job(model=model(folder), data={"resolution": SIZE})
    ours_model = job.model.open(ctx)
    solver_config = job.scheduler.open(ours_model.info).solver_config((8, 12), 3)
    sampler = ClassifierFreeGuidance(solver="ddim", steps=3, guidance_scale=4.0)
    ours = sampler.sample(
        ours_model, ["a photo of a dog"], seeds=[5], size=tuple(SIZE),
        solver_config=solver_config, ctx=ctx, negative="grey",
    )  # fmt: skip
    pipe = opened(folder)
    pipe.scheduler = DDIMScheduler.from_config(solver_config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    size = tuple(SIZE)
    sizes = {"original_size": size, "target_size": size} if hasattr(pipe, "tokenizer_2") else {}
    theirs = pipe(
        "a photo of a dog", negative_prompt="grey", latents=noise, num_inference_steps=3,
        guidance_scale=4.0, output_type="latent", height=SIZE[0], width=SIZE[1], **sizes,
    ).images  # fmt: skip
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.std()
    drawn = ours_model.decode(ours)
    decoded = pipe.vae.decode(theirs / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(drawn, decoded.detach(), rtol=1e-4, atol=1e-4)


def test_sizes_and_both_texts_matter(sdxl, ctx, small_job):
    """What the equalities above hold is really read: each input moves the prediction."""
    from dreambooth.interfaces import RowGeometry

    opened = small_job(model=model(sdxl)).model.open(ctx)
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
