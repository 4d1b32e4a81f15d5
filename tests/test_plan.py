"""The plan counts what the run will really hold and do."""

from __future__ import annotations

import pytest
import torch

from dreambooth.engine.cost import plan
from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.reporting import Quiet


def plan_of(job):
    return make_plan(job, Quiet())


def test_parameters_and_bytes_a_part(small_job, tiny_model):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet")
    count = sum(p.numel() for p in unet.parameters())
    plan = plan_of(small_job(freezing={"kind": "components", "train": ["unet"]}))
    parts = {part.name: part for part in plan.parts}
    assert (parts["unet"].parameters, parts["unet"].trainable) == (count, count)
    assert parts["unet"].bytes == 16 * count  # weight, gradient and two moments, float32
    assert parts["text_encoder"].trainable == 0
    assert parts["text_encoder"].bytes == parts["vae"].bytes == 0  # cached, then released
    assert plan.checkpoint_bytes == 12 * count


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "prodigy"])
def test_optimizer_state_is_counted_tensor_by_tensor(small_job, tiny_model, kind):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet")
    sizes = [p.numel() for p in unet.parameters()]
    small = sum(size for size in sizes if size < 4096)
    assert 100 * len(sizes) < small < sum(sizes) / 2  # both kinds of tensor are there
    expected = {
        "adamw": 8 * sum(sizes),
        "adamw8bit": 8 * small + 2.03125 * (sum(sizes) - small),
        "prodigy": 16 * sum(sizes),
    }
    train = {"kind": "components", "train": ["unet"]}
    plan = plan_of(small_job(freezing=train, optimizer={"kind": kind}))
    assert plan.memory.optimizer == pytest.approx(expected[kind], abs=len(sizes))
    parts = {part.name: part for part in plan.parts}
    assert parts["unet"].bytes == 8 * sum(sizes) + plan.memory.optimizer
    assert plan.memory.total == sum(p.bytes for p in plan.parts) + plan.memory.activations
    assert plan.checkpoint_bytes == 4 * sum(sizes) + plan.memory.optimizer


def test_what_stays_in_memory(small_job):
    def held(**sections):
        plan = plan_of(small_job(freezing={"kind": "components", "train": ["unet"]}, **sections))
        return {part.name for part in plan.parts if part.bytes}

    assert held() == {"unet"}
    assert held(samples={"every": 2}) == {"unet"}  # the VAE comes for the pictures and goes
    assert held(data={"crop": "random"}) == {"unet", "vae"}
    assert held(train={"cache": False}) == {"unet", "vae", "text_encoder"}


def test_checkpointing_keeps_less(small_job):
    plain = plan_of(small_job()).memory.activations
    less = plan_of(small_job(train={"gradient_checkpointing": True})).memory.activations
    assert less < 0.7 * plain


@pytest.mark.parametrize(
    ("prior", "options"),
    [({"when": "alongside"}, {}), ({"kind": "mirror"}, {"reference": "frozen_copy"})],
    ids=["alongside", "mirror"],
)
def test_a_copy_of_the_base_is_counted(small_job, prior, options):
    def plan(parts, **sections):
        freezing = {"kind": "components", "train": parts}
        if sections:
            freezing |= options
        return plan_of(small_job(freezing=freezing, **sections))

    both = ["unet", "text_encoder"]
    count = {part.name: part.parameters for part in plan(both).parts}
    assert plan(both).memory.copy == 0
    # Where its prompts are encoded beforehand, the copy keeps no text encoder.
    assert plan(["unet"], prior=prior).memory.copy == 4 * count["unet"]
    held = plan(both, prior=prior).memory
    assert held.copy == 4 * (count["unet"] + count["text_encoder"])
    # Beside it there are only the texts of a prompt more.
    assert held.total - held.copy == pytest.approx(plan(both).memory.total, rel=1e-3)


def test_prices(small_job):
    # A seed of its own: no other test has put this set of class images into the store.
    options = {"samples": {"every": 2, "per_prompt": 3}, "prior": {"seed": 987}}
    plan = plan_of(small_job(train={"steps": 5}, **options))
    assert plan.sample_pictures == 4 * 2 * 3  # untrained, at steps 2 and 4, and at the end
    # 4 pictures of 2 steps in two halves, against steps of 2 rows at three forwards each
    assert plan.class_steps == pytest.approx(4 * 2 * 2 / 6)
    assert plan.epochs == pytest.approx(5 / 3)
    assert plan.rows == 2
    assert plan_of(small_job(prior="none")).class_pictures == 0


def test_a_card_keeps_room_for_its_libraries_in_every_phase(small_job, monkeypatch):
    from dreambooth.engine.cost.memory import CUBLAS
    from dreambooth.engine.devices.precision import Precision

    on_cpu = make_plan(small_job(prior="none"), Quiet())
    card = torch.device("cuda")
    monkeypatch.setattr(plan, "pick_device", lambda name: card)
    monkeypatch.setattr(plan, "precision_of", lambda *_: Precision("fp32", card))
    there = make_plan(small_job(prior="none"), Quiet())
    for one, other in zip(on_cpu.phases, there.phases, strict=True):
        assert (one.libraries, other.libraries) == (0, CUBLAS)
        assert other.total - other.working - other.weights >= CUBLAS


def test_prompts_of_a_larger_size_are_planned_for(small_job):
    """A prompt may have a size of its own: the one that takes the most counts, and its price."""

    def planned(*prompts, **options):
        samples = {"every": 2, "per_prompt": 2, "prompts": list(prompts), **options}
        plan = plan_of(small_job(samples=samples))
        return {p.phase: p.working for p in plan.phases}["drawing"], plan.sample_steps

    large = {"prompt": "a", "size": [64, 128]}  # eight times the training area
    (plain, price), (drawn, dearer), (both, sum_of_both) = (
        planned("a"), planned(large), planned("a", large)
    )  # fmt: skip
    assert both == drawn > 4 * plain  # some of it is there at any size
    assert dearer == pytest.approx(8 * price)
    assert sum_of_both == pytest.approx(9 * price)
    alone, _ = planned(large, batch_size=1)
    assert alone == pytest.approx(drawn / 2, rel=0.1)
    assert planned({"prompt": "a", "steps": 6})[1] == pytest.approx(3 * price)
