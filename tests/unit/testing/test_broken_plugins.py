"""Plugins broken in five ways and one: the suite that finds it says what to change."""

from __future__ import annotations

import random
import re
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import ImageStat

from dreambooth import (
    Callback,
    Captioner,
    FreezingPolicy,
    Loss,
    LRSchedule,
    Masker,
    SafetyChecker,
    Sampler,
)
from dreambooth.component.door import WrongAnswer
from dreambooth.interfaces import Observer
from dreambooth.testing import (
    CallbackConformance,
    CaptionerConformance,
    FreezingPolicyConformance,
    LossConformance,
    LRScheduleConformance,
    MaskerConformance,
    SafetyConformance,
    SamplerConformance,
    Trainer,
)


class Averaging(Loss):
    """Averages over the batch, so that a row's loss depends on the others."""

    kind: Literal["averaging"] = "averaging"

    def rows(self, s):
        error = (s.pred - s.target).square()
        return s.weight * error.mean().expand(len(error))


class Nothing(FreezingPolicy):
    """Looks for names of another family."""

    kind: Literal["nothing"] = "nothing"

    def trainable(self, model):
        return {n: p for n, p in model.named_parameters() if "double_blocks" in n}


class Global(Sampler):
    """Draws from torch's own generator."""

    kind: Literal["global"] = "global"

    def sampling_steps(self):
        return 1

    def sample(self, model, prompts, *, seeds, size, solver_config, ctx, negative, progress):
        latent = model.info.latent
        return torch.randn(len(prompts), latent.channels, *(side // latent.factor for side in size))


class Falling(LRSchedule):
    """Falls to 0 at the end, and does not say that it looks at it."""

    kind: Literal["falling"] = "falling"

    def factor(self, step, steps):
        return 1 - step / steps


class Forgetful(Callback):
    """Counts events, and forgets the count when a run goes on."""

    kind: Literal["forgetful"] = "forgetful"

    def open(self, ctx):
        return Counting()


class Counting(Observer):
    def __init__(self):
        self.count = 0

    def on(self, event, view):
        self.count += 1

    def state(self):
        return {"count": self.count}


class Mute(LRSchedule):
    """Has an option that nothing is said about."""

    kind: Literal["mute"] = "mute"
    power: float = 1.0

    def factor(self, step, steps):
        return (step + 1) ** -self.power


class Rowless(Loss):
    """Answers in another shape."""

    kind: Literal["rowless"] = "rowless"

    def rows(self, s):
        return (s.pred - s.target).square().mean()


class Relative(SafetyChecker):
    """Scores pictures against the brightest of their batch."""

    kind: Literal["relative"] = "relative"

    def scores(self, images, device):
        light = [ImageStat.Stat(image.convert("L")).mean[0] for image in images]
        return [one / max(light) for one in light]


class Tinted(Masker):
    """Paints on the pictures it is given."""

    kind: Literal["tinted"] = "tinted"

    def masks(self, images, device):
        for image in images:
            image.paste((255, 0, 0), (0, 0, 4, 4))
        return [np.ones((image.height, image.width), np.float32) for image in images]


class Chatty(Captioner):
    """Says another thing each time."""

    kind: Literal["chatty"] = "chatty"

    def captions(self, images, device):
        return [f"picture {random.random()}" for _ in images]


SUITES = {
    SafetyConformance: "a_pictures_answer_is_its_own",
    MaskerConformance: "a_pictures_answer_is_its_own",
    CaptionerConformance: "a_pictures_answer_is_its_own",
    LossConformance: "a_rows_loss_is_its_own",
    FreezingPolicyConformance: "what_trains_is_the_models_own",
    SamplerConformance: "a_picture_does_not_depend_on_its_batch",
    LRScheduleConformance: "it_says_whether_it_depends_on_the_end",
    CallbackConformance: "its_state_comes_back",
}


@pytest.mark.parametrize(
    ("suite", "component", "test", "said"),
    [
        (LossConformance, Averaging(), "", "do not average over rows"),
        (FreezingPolicyConformance, Nothing(), "", "its names match no parameter"),
        (SamplerConformance, Global(), "", "make one torch.Generator an image from its seed"),
        (
            SamplerConformance,
            Global(),
            "it_leaves_global_randomness_alone",
            "torch's global generator was used: draw from ctx.random(stream, *index)",
        ),
        (LRScheduleConformance, Falling(), "", "depends_on_end() must return True"),
        (CallbackConformance, Forgetful(), "", "a resumed run would forget"),
        (
            LRScheduleConformance,
            Mute(),
            "people_can_read_what_it_and_its_options_are",
            "options without a docstring below them: power",
        ),
        (SafetyConformance, Relative(), "", "depends on the pictures beside it"),
        (MaskerConformance, Tinted(), "", "the pictures themselves were changed: work on a copy"),
        (CaptionerConformance, Chatty(), "", "ask of one after the other, and draw nothing by lot"),
        (LossConformance, Rowless(), "", "where Tensor [4] float32, a loss a row, is wanted"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_suite_says_what_to_change(suite, component, test, said, tmp_path):
    mine = type("TestMine", (suite,), {"component": component})()
    trainer = Trainer(tmp_path)
    method = getattr(mine, f"test_{test or SUITES[suite]}")
    names = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    given = {"made": component, "trainer": trainer}
    with pytest.raises((AssertionError, WrongAnswer), match=re.escape(said)):
        method(**{name: given[name] for name in names})


def test_a_suite_is_collected_where_it_has_something_to_test():
    assert not LossConformance.__test__
    assert type("TestMine", (LossConformance,), {"component": Averaging()}).__test__


def test_the_fixtures_bring_a_trainer_and_plug_for_a_test(trainer, plugged):
    from dreambooth import hookimpl

    class Plugin:
        @hookimpl
        def register_losses(self):
            return [Rowless]

    registry = plugged(Plugin())
    assert "rowless" in registry.kinds("loss")
    ran = trainer.run(prior="none", train={"steps": 2})
    assert len(ran.losses) == 2
    assert "metrics.jsonl" in ran.files
    assert set(ran.weights()) == {n for n in ran.weights() if n.startswith(("unet.", "text_enc"))}
