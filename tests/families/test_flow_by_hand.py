"""Losses and pictures of the flow-matching families equal those of plain diffusers calls."""

from __future__ import annotations

import diffusers
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from dreambooth.engine.step import train_step

SIZE = [32, 48]
"""Height and width: latents are not square."""


@pytest.fixture
def pictures(tmp_path):
    """Three pictures whose texts are of unequal length."""
    where = tmp_path / "pictures"
    where.mkdir()
    for i, size in enumerate([(100, 60), (64, 90), (48, 32)]):
        image = Image.new("RGB", size, (200, 40 * i, 90))
        image.paste((255, 255, 0), (8 * i, 8, 8 * i + 24, 30))
        image.save(where / f"{i}.png")
        words = " ".join(["of"] * (1 + 3 * i))
        (where / f"{i}.txt").write_text(f"picture {words} {{identifier}} {{class_noun}}")
    return where


def flux(pipe, prompts, z_s, s):
    embeds, pooled, text_ids = pipe.encode_prompt(prompts, max_sequence_length=512)
    b, c, h, w = z_s.shape
    out = pipe.transformer(
        pipe._pack_latents(z_s, b, c, h, w), embeds, pooled, s,
        pipe._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32), text_ids,
        guidance=torch.ones(b),
    ).sample  # fmt: skip
    scale = pipe.vae_scale_factor
    return pipe._unpack_latents(out, h * scale, w * scale, scale)


def sd3(pipe, prompts, z_s, s):
    embeds, _, pooled, _ = pipe.encode_prompt(
        prompts, prompts, prompts, do_classifier_free_guidance=False
    )
    return pipe.transformer(z_s, embeds, pooled, 1000 * s).sample


def z_image(pipe, prompts, z_s, s):
    """A row at a time: nothing is padded there."""
    rows = []
    for i, prompt in enumerate(prompts):
        [text], _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        x = [z_s[i].unsqueeze(1)]
        rows.append(-pipe.transformer(x, 1 - s[i : i + 1], [text]).sample[0].squeeze(1))
    return torch.stack(rows)


def flux2_klein(pipe, prompts, z_s, s):
    embeds, text_ids = pipe.encode_prompt(prompts)
    ids = pipe._prepare_latent_ids(z_s)
    out = pipe.transformer(
        pipe._pack_latents(z_s), embeds, s, ids, text_ids, None
    ).sample  # fmt: skip
    return pipe._unpack_latents_with_ids(out, ids, *z_s.shape[-2:])


def qwen_image(pipe, prompts, z_s, s):
    """A row at a time: nothing is padded there."""
    rows, scale = [], pipe.vae_scale_factor
    for i, prompt in enumerate(prompts):
        embeds, mask = pipe.encode_prompt(prompt)
        assert mask is None
        _, c, h, w = z_s.shape
        tokens = pipe._pack_latents(z_s[i : i + 1], 1, c, h, w)
        shapes = [[(1, h // 2, w // 2)]]
        out = pipe.transformer(tokens, embeds, None, s[i : i + 1], shapes).sample
        rows.append(pipe._unpack_latents(out, h * scale, w * scale, scale).squeeze(2))
    return torch.cat(rows)


VELOCITY = {
    "flux": flux,
    "sd3": sd3,
    "z_image": z_image,
    "flux2_klein": flux2_klein,
    "qwen_image": qwen_image,
}
PIPELINES = {
    "flux": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "z_image": "ZImagePipeline",
    "flux2_klein": "Flux2KleinPipeline",
    "qwen_image": "QwenImagePipeline",
}
CALLS = {
    "flux": {"guidance_scale": 2.5},
    "sd3": {"guidance_scale": 3.0, "negative_prompt": "grey"},
    "z_image": {"guidance_scale": 2.0, "negative_prompt": "grey"},
    "flux2_klein": {"guidance_scale": 3.0},
    "qwen_image": {"true_cfg_scale": 3.0, "negative_prompt": "grey"},
}
"""How each pipeline is asked for a picture; Z-Image counts guidance from 0, and FLUX.2 klein's
takes no negative prompt."""
SCALES = {"flux": 2.5}
PACKED = ("flux", "qwen_image")


def pipeline(name):
    return getattr(diffusers, PIPELINES[name]).from_pretrained(tiny.folder(name))


def model(name):
    return {"kind": name, "source": str(tiny.folder(name))}


FLOW = {"scheduler": {"kind": "flow"}, "sampler": {"kind": "flow", "steps": 2}}


@pytest.mark.parametrize("name", VELOCITY)
def test_the_loss_of_three_and_three_rows(open_for, name):
    session = open_for(
        model=model(name),
        data={"resolution": SIZE, "crop": "random"},
        freezing={"kind": "components", "train": ["transformer"]},
        loss={"kind": "prior_preservation", "prior_weight": 0.7},
        train={"steps": 2, "batch_size": 3, "precision": "fp32"},
        **FLOW,
    )
    batch = session.batches.make(0, 0)
    assert len({len(p) for p in batch.prompts[:3]}) == 3
    z, noise, s = batch.latents, batch.draw.noise, batch.draw.t
    assert z.shape[-2] != z.shape[-1]
    at = s.view(-1, 1, 1, 1)
    with torch.no_grad():
        pred = VELOCITY[name](pipeline(name), batch.prompts, (1 - at) * z + at * noise, s)
    rows = ((pred - (noise - z)) ** 2).mean(dim=(1, 2, 3))
    expected = rows[~batch.is_prior].mean() + 0.7 * rows[batch.is_prior].mean()
    torch.testing.assert_close(train_step(session).loss, expected, rtol=1e-5, atol=1e-5)


def encoded(name, vae, pixels):
    """Return mean and deviation of the latents, and how they are decoded, by the formulas."""
    config = vae.config
    if name == "flux2_klein":
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        std = (vae.bn.running_var + config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
        pipe = diffusers.Flux2KleinPipeline
        z = (pipe._patchify_latents(vae.encode(pixels).latent_dist.mode()) - mean) / std
        return z, None, lambda z: vae.decode(pipe._unpatchify_latents(z * std + mean)).sample
    if name == "qwen_image":
        mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
        found = vae.encode(pixels[:, :, None]).latent_dist
        z, spread = (found.mean - mean) / std, found.std / std
        return (
            z[:, :, 0],
            spread[:, :, 0],
            lambda z: vae.decode(z[:, :, None] * std + mean).sample[:, :, 0],
        )
    found = vae.encode(pixels).latent_dist
    scale, shift = config.scaling_factor, config.shift_factor
    # diffusers' script for Z-Image trains on the mean.
    std = None if name == "z_image" else found.std * scale
    return (found.mean - shift) * scale, std, lambda z: vae.decode(z / scale + shift).sample


@pytest.mark.parametrize("name", VELOCITY)
def test_latents_are_the_autoencoders(ctx, small_job, name):
    opened = small_job(model=model(name), **FLOW).model.open(ctx)
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        found = opened.encode_images(pixels)
        mean, std, decode = encoded(name, pipeline(name).vae, pixels)
        torch.testing.assert_close(found.mean, mean)
        if std is None:
            assert found.std is None
        else:
            torch.testing.assert_close(found.std, std)
        torch.testing.assert_close(opened.decode(mean), decode(mean).clamp(-1, 1))


@pytest.mark.parametrize("name", VELOCITY)
def test_a_preview_is_the_picture_of_the_pipeline(ctx, small_job, name):
    from dreambooth_plugins.sampler import FlowSampler

    job = small_job(model=model(name), data={"resolution": SIZE}, **FLOW)
    opened = job.model.open(ctx)
    sampler = FlowSampler(steps=3, guidance_scale=SCALES.get(name, 3.0))
    solver_config = job.scheduler.open(opened.info).solver_config(tuple(SIZE), 3)
    ours = sampler.sample(
        opened, ["a photo of a dog"], seeds=[5], size=tuple(SIZE), solver_config=solver_config,
        ctx=ctx, negative=CALLS[name].get("negative_prompt", ""),
    )  # fmt: skip
    pipe = pipeline(name)
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5))
    if name in PACKED:
        noise = pipe._pack_latents(noise, *noise.shape)
    theirs = pipe(
        prompt="a photo of a dog", latents=noise, num_inference_steps=3, height=SIZE[0],
        width=SIZE[1], output_type="latent", **CALLS[name],
    ).images  # fmt: skip
    if name in PACKED:
        theirs = pipe._unpack_latents(theirs, *SIZE, pipe.vae_scale_factor)
    if name == "flux2_klein":  # the pipeline gives them back as the autoencoder has them
        std = (pipe.vae.bn.running_var + pipe.vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
        mean = pipe.vae.bn.running_mean.view(1, -1, 1, 1)
        theirs = (pipe._patchify_latents(theirs) - mean) / std
    theirs = theirs.reshape(ours.shape)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.std()


@pytest.mark.parametrize("name", VELOCITY)
@pytest.mark.parametrize("size", [(32, 48)])
def test_steps_lie_where_the_pipeline_puts_them(ctx, small_job, name, size, monkeypatch):
    from dreambooth_plugins.sampler.flow_steps import times

    opened = small_job(model=model(name), **FLOW).model.open(ctx)
    cells = tuple(side // opened.info.latent.factor for side in size)
    table = times(opened.info, opened.info.schedule, cells, 5)
    pipe = pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    pipe(
        prompt="a dog", num_inference_steps=5, height=size[0], width=size[1], output_type="latent",
        generator=torch.Generator().manual_seed(0), **CALLS[name],
    )  # fmt: skip
    torch.testing.assert_close(torch.tensor(table), pipe.scheduler.sigmas, rtol=1e-6, atol=1e-7)
