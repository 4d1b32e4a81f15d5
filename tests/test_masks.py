"""Masks on their way to the loss: through the cache or past it, on the latent grid, never stale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.session import open_session
from dreambooth.engine.step import train_step
from test_run import Listening


@pytest.fixture
def folder(tmp_path):
    """Nine pictures of 32 x 32, more than one chunk of the cache; number 3 has no mask."""
    root = tmp_path / "masked"
    root.mkdir()
    for i in range(9):
        picture = Image.new("RGB", (32, 32), (20 * i, 30, 200))
        picture.paste((255, 255, 0), (i, 4, i + 12, 20))
        picture.save(root / f"{i}.png")
        if i != 3:
            mask = Image.new("L", (32, 32), 0)
            mask.paste(255, (i, 4, i + 12, 20))
            mask.save(root / f"{i}.mask.png")
    return root


@pytest.fixture
def opened(small_job, folder):
    def at(batch=3, cache=True, floor=0.1, **data):
        job = small_job(
            data={"path": folder, "mask": "file", "captions": "none", **data},
            loss={"kind": "masked", "floor": floor, "prior_weight": 0.7},
            train={"batch_size": batch, "cache": cache},
        )
        with open_devices(job.train) as devices:
            precision = Precision("fp32", devices.device)
            ctx = EngineContext(job, devices.device, precision, job.folder, Quiet(), devices)
            return open_session(ctx, job.data.scan(ctx))

    return at


def expected_mask(folder, name):
    """The mask of a picture at the training size; None where it has none."""
    path = folder / name.replace(".png", ".mask.png")
    if not path.exists():
        return None
    return torch.from_numpy(np.asarray(Image.open(path), np.float32) / 255)


@pytest.mark.parametrize("cache", [True, False])
def test_each_row_has_the_mask_of_its_own_picture(opened, folder, cache):
    session = opened(cache=cache)
    seen = set()
    for step in range(3):
        batch = session.batches.make(step, 0)
        height = batch.latents.shape[-1]
        assert batch.mask.shape == (6, 1, height, height)
        for row, name in enumerate(batch.ids[:3]):
            mask = expected_mask(folder, name)
            seen.add(name)
            if mask is None:
                assert torch.equal(batch.mask[row], torch.ones(1, height, height))
                continue
            cell = 32 // height
            shrunk = mask.view(height, cell, height, cell).mean((1, 3))
            torch.testing.assert_close(batch.mask[row, 0], shrunk)
        assert torch.equal(batch.mask[3:], torch.ones(3, 1, height, height))
    assert len(seen) == 9


@pytest.mark.parametrize("flip", [False, True])
def test_the_cache_changes_no_mask(opened, flip):
    one, other = opened(flip=flip), opened(flip=flip, cache=False)
    for step in range(3):
        assert torch.equal(one.batches.make(step, 0).mask, other.batches.make(step, 0).mask)


def test_a_changed_mask_is_never_met_stale(opened, folder):
    before = opened().batches.make(0, 0)
    for path in folder.glob("*.mask.png"):
        Image.new("L", (32, 32), 255).save(path)
    after = opened().batches.make(0, 0)
    assert torch.equal(before.latents, after.latents)
    assert not torch.equal(before.mask, after.mask)
    assert torch.equal(after.mask, torch.ones_like(after.mask))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_loss_equals_plain_diffusers(opened, tiny_model, batch_size):
    session = opened(batch_size, floor=0.25)
    batch = session.batches.make(0, 0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    text = CLIPTextModel.from_pretrained(tiny_model / "text_encoder").eval()
    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet").eval()
    scheduler = DDPMScheduler.from_pretrained(tiny_model / "scheduler")
    noisy = scheduler.add_noise(batch.latents, batch.draw.noise, batch.draw.t)
    ids = tokenizer(
        batch.prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        pred = unet(noisy, batch.draw.t, encoder_hidden_states=text(ids)[0]).sample
    squares = ((pred - batch.draw.noise) ** 2).mean(1)
    n, losses = batch_size, []
    for row in range(n):
        weights = 0.25 + 0.75 * batch.mask[row, 0]
        losses.append((weights * squares[row]).sum() / weights.sum())
    expected = sum(losses) / n + 0.7 * squares[n:].mean()
    result = train_step(session)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-6)


def test_a_mask_that_changed_between_two_lives_is_named(small_job, folder):
    options = {"data": {"path": folder, "mask": "file", "captions": "none"}, "prior": "none"}
    run(small_job(loss="masked", train={"steps": 1}, **options))
    Image.new("L", (32, 32), 255).save(folder / "4.mask.png")
    listening = Listening()
    run(small_job(loss="masked", train={"steps": 2}, **options), reporter=listening)
    assert "picture 4.png changed since the run began" in listening.lines
