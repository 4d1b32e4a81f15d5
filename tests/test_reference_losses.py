"""The reference pass: mirrored rows, and losses equal to plain diffusers once training has moved
the model away from the base."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.session import open_session
from dreambooth.engine.step import condition, train_step
from test_resume_exact import result_bytes
from test_run import cut

BOTH = ["unet", "text_encoder"]
CLASS = "a photo of a dog"


@pytest.fixture
def opened(small_job, tiny_model):
    """Open a session of a job with a frozen copy of the base; `train` names what learns."""

    def at(loss, prior, *, batch=1, train=BOTH, folder=tiny_model, freezing=None, **options):
        copied = {"kind": "components", "train": train, "reference": "frozen_copy"}
        job = small_job(
            model={"kind": "stable_diffusion", "source": str(folder)},
            loss=loss,
            prior=prior,
            freezing=freezing or copied,
            optimizer={"kind": "adamw", "lr": 1e-2 if freezing else 1e-3},
            train={"batch_size": batch, "max_grad_norm": None, **options},
        )
        with open_devices(job.train) as devices:
            precision = Precision("fp32", devices.device)
            ctx = EngineContext(job, devices.device, precision, job.folder, Quiet(), devices)
            return open_session(ctx, job.data.scan(ctx))

    return at


class Plain:
    """UNet and text encoder of a folder, or with a session's weights, in plain libraries."""

    def __init__(self, folder, model=None):
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
        if model is not None:
            self.unet.load_state_dict(model.parts["unet"].state_dict())
            self.text.load_state_dict(model.parts["text_encoder"].state_dict())

    def __call__(self, noisy, t, prompts):
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        return self.unet(noisy, t, encoder_hidden_states=self.text(ids)[0]).sample


def mean_squares(a, b):
    return ((a - b) ** 2).mean(dim=(1, 2, 3))


def moved(session):
    """Take three steps, so that the model is no longer its base; return the next batch, noised."""
    for _ in range(3):
        train_step(session)
    batch = session.batches.make(session.state.step, 0)
    scheduler = DDPMScheduler.from_pretrained(session.model.source.config / "scheduler")
    return batch, scheduler.add_noise(batch.latents, batch.draw.noise, batch.draw.t)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_mirrored_rows_repeat_latents_noise_and_timestep(opened, batch_size):
    session = opened("prior_preservation", "mirror", batch=batch_size)
    batch = session.batches.make(1, 0)
    for tensor in (batch.latents, batch.draw.noise, batch.draw.t):
        first, second = tensor.chunk(2)
        assert torch.equal(first, second)
    assert len(set(batch.draw.t.tolist())) == batch_size
    assert batch.prompts[batch_size:] == [CLASS] * batch_size
    assert batch.is_prior.tolist() == [False] * batch_size + [True] * batch_size
    # The base is asked about class rows alone.
    assert batch.reference_rows == list(range(batch_size, 2 * batch_size))


@pytest.mark.parametrize("loss", ["self_distilled_prior", "prior_preservation"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_class_rows_of_a_mirror_are_held_to_the_base(opened, tiny_model, batch_size, loss):
    session = opened({"kind": loss, "prior_weight": 0.7}, "mirror", batch=batch_size)
    batch, noisy = moved(session)
    with torch.no_grad():
        pred = Plain(tiny_model, session.model)(noisy, batch.draw.t, batch.prompts)
        base = Plain(tiny_model)(noisy, batch.draw.t, batch.prompts)
    n = batch_size
    learned = mean_squares(pred[:n], batch.draw.noise[:n]).mean()
    kept = 0.7 * mean_squares(pred[n:], base[n:]).mean()
    assert kept > 1e-4  # the model has moved: held to the base is not held to itself
    result = train_step(session)
    torch.testing.assert_close(result.loss_instance, learned, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.loss_prior, kept, rtol=1e-4, atol=1e-7)


def test_class_images_can_be_held_to_the_base_too(opened, tiny_model):
    prior = {"kind": "generated", "count": 4, "batch_size": 4}
    session = opened("self_distilled_prior", prior, batch=2)
    batch, noisy = moved(session)
    with torch.no_grad():
        pred = Plain(tiny_model, session.model)(noisy, batch.draw.t, batch.prompts)
        base = Plain(tiny_model)(noisy, batch.draw.t, batch.prompts)
    expected = mean_squares(pred[2:], base[2:]).mean()
    result = train_step(session)
    torch.testing.assert_close(result.loss_prior, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("train", [BOTH, ["unet"]], ids=["text trains", "text is cached"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_dco_equals_plain_diffusers(opened, tiny_model, batch_size, train):
    session = opened({"kind": "dco", "beta": 50.0}, "none", batch=batch_size, train=train)
    batch, noisy = moved(session)
    assert batch.reference_rows == list(range(batch_size))
    without = [f"picture {name[0]} of dog" for name in batch.ids]
    assert batch.reference_prompts == without
    with torch.no_grad():
        pred = Plain(tiny_model, session.model)(noisy, batch.draw.t, batch.prompts)
        base = Plain(tiny_model)(noisy, batch.draw.t, without)
    ahead = mean_squares(pred, batch.draw.noise) - mean_squares(base, batch.draw.noise)
    expected = torch.nn.functional.softplus(50.0 * ahead).mean()
    assert abs(float(expected) - 0.6931) > 1e-3  # not the log 2 of a model that is its base
    result = train_step(session)
    torch.testing.assert_close(result.loss, expected, rtol=1e-4, atol=1e-5)
    if train == ["unet"]:  # its prompts were encoded beforehand: no text encoder is left
        assert session.model.base.loaded() == ("unet",)


@pytest.mark.parametrize("train", [BOTH, ["unet"]], ids=["text trains", "text is cached"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_adapters_are_switched_off_for_the_base(opened, tiny_model, batch_size, train):
    freezing = {"kind": "adapter", "train": train}
    session = opened(
        {"kind": "self_distilled_prior", "prior_weight": 0.7},
        "mirror",
        batch=batch_size,
        freezing=freezing,
    )
    batch, noisy = moved(session)
    assert session.model.base is None  # no second model in memory
    with torch.no_grad():
        cond = condition(session.model, batch.prompts, batch.geometry)
        pred = session.model.denoise(noisy, batch.draw.t, cond)
        base = Plain(tiny_model)(noisy, batch.draw.t, batch.prompts)
    n = batch_size
    kept = 0.7 * mean_squares(pred[n:], base[n:]).mean()
    assert kept > 1e-4
    learned = mean_squares(pred[:n], batch.draw.noise[:n]).mean()
    result = train_step(session)
    torch.testing.assert_close(result.loss_instance, learned, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.loss_prior, kept, rtol=1e-4, atol=1e-7)


def test_the_copy_stays_the_base_to_the_bit(opened, tiny_model):
    session = opened("self_distilled_prior", "mirror")
    moved(session)
    stored = load_file(tiny_model / "unet/diffusion_pytorch_model.safetensors")
    copy = session.model.base.parts["unet"].state_dict()
    assert all(torch.equal(copy[name], tensor) for name, tensor in stored.items())
    trained = session.model.parts["unet"].state_dict()
    assert not torch.equal(trained["conv_in.weight"], stored["conv_in.weight"])
    known = {id(p) for p in session.state.parameters.values()}
    assert not [p for p in session.model.base.parts["unet"].parameters() if id(p) in known]


@pytest.mark.parametrize("loss", ["self_distilled_prior", "dco"])
def test_a_resumed_run_is_held_to_the_same_base(small_job, monkeypatch, loss):
    options = {
        "loss": loss,
        "prior": "none" if loss == "dco" else "mirror",
        "freezing": {"kind": "components", "reference": "frozen_copy"},
        "train": {"steps": 5, "batch_size": 2},
        "checkpoints": {"every": 2},
    }
    straight = run(small_job(name="straight", **options))
    resumed = small_job(name="resumed", **options)
    cut(resumed, 3, monkeypatch)
    assert result_bytes(run(resumed).folder, 5) == result_bytes(straight.folder, 5)


def test_checkpointed_layers_give_the_same_gradients(opened):
    losses = []
    for checkpointing in (False, True):
        session = opened("self_distilled_prior", "mirror", gradient_checkpointing=checkpointing)
        losses.append(torch.stack([train_step(session).loss for _ in range(3)]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
