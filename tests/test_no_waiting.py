"""A training step never waits for the device: counted on a card that is not there.

Outside logged steps nothing is read back, nothing has a size that depends on values, and what goes
to the card goes through pinned memory. `make test-gpu` holds the same with a real one.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module

import pytest

from card import Card, OnCard, move_to_card
from dreambooth.engine.loop import record
from dreambooth.engine.step import Meter, train_step
from dreambooth_plugins.model.stable_diffusion_loaded import LoadedStableDiffusion

SNR = {"kind": "prior_preservation", "min_snr_gamma": 5.0}
DEBIASED = {"kind": "prior_preservation", "debiased": True}
COMPONENTS = {"kind": "components", "train": ["unet", "text_encoder"]}
LORA = {"kind": "adapter", "method": {"kind": "lora", "rank": 2}}
JOBS = {
    "full": {"freezing": COMPONENTS, "loss": SNR, "train": {"ema": {}, "accumulation": 2}},
    "lora": {"freezing": {**LORA, "train": ["unet", "text_encoder"]}, "loss": DEBIASED},
    "mirror": {"freezing": LORA, "prior": "mirror", "loss": "self_distilled_prior"},
    "dco": {"freezing": LORA, "prior": "none", "loss": "dco"},
    "word": {"freezing": {"kind": "pivotal"}, "subject": {"identifier": "<my-dog>"}},
    "latents anew": {"freezing": LORA, "train": {"cache": False}},
}
CASES = [(name, "fp32") for name in JOBS]
CASES += [(name, "bf16") for name in ("full", "lora", "mirror", "dco")]


@pytest.fixture
def fused(monkeypatch):
    """Let the card have torch's fused optimizers."""
    from dreambooth_plugins.optimizer import implementations

    for module in (import_module("torch.optim.optimizer"), implementations):
        monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])


@pytest.fixture
def with_card(fused, monkeypatch):
    """Let the engine use the card as it would a real one."""
    monkeypatch.setattr("dreambooth.helpers.transfer.PINNED_FOR", {"meta"})
    monkeypatch.setattr(LoadedStableDiffusion, "_float32", lambda self: nullcontext())


def trained(s, steps=2):
    """Take steps, and count the last one; returns losses and the counter."""
    meter, losses, card = Meter(), [], Card()
    for _ in range(steps):
        card = Card()
        with card:
            result = train_step(s)
            record(meter, result)
        losses.append(result.loss)
    return [float(x.held if isinstance(x, OnCard) else x) for x in losses], card


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_a_step_waits_for_nothing(open_for, with_card, name, precision):
    sections = {"data": {"kind": "folder", "caption_dropout": 0.5}, **JOBS[name]}
    sections["train"] = {"batch_size": 2, **sections.get("train", {})}
    losses, card = trained(move_to_card(open_for(precision, **sections)))
    assert not card.waits, "\n".join(card.waits)
    forwards = sections["train"].get("accumulation", 1)
    assert 0 < card.uploads <= 8 * forwards
    if name == "full" and precision == "fp32":
        plain, _ = trained(open_for(precision, **sections))
        assert losses == pytest.approx(plain, rel=1e-4)
