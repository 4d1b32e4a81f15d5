"""The flow-matching families pass the suite of one; faults of each kind are seen."""

from __future__ import annotations

from typing import ClassVar

import pytest
import tiny
import torch

from dreambooth.helpers.flow import set_steps
from dreambooth.interfaces import Conditioning
from dreambooth.testing import FamilyConformance, Trainer
from dreambooth_plugins.model import Flux, Flux2Klein, QwenImage, StableDiffusion3, ZImage

FLOW = {"scheduler": {"kind": "flow"}, "sampler": {"kind": "flow", "steps": 2}}


class FlowFamily(FamilyConformance):
    sections: ClassVar = FLOW
    quick: ClassVar = True


class TestFlux(FlowFamily):
    def make(self, pictures):
        return Flux(source=str(tiny.folder("flux")))


class TestStableDiffusion3(FlowFamily):
    def make(self, pictures):
        return StableDiffusion3(source=str(tiny.folder("sd3")))


class TestFlux2Klein(FlowFamily):
    def make(self, pictures):
        return Flux2Klein(source=str(tiny.folder("flux2_klein")))


class TestQwenImage(FlowFamily):
    def make(self, pictures):
        return QwenImage(source=str(tiny.folder("qwen_image")))


class TestZImage(FlowFamily):
    def make(self, pictures):
        return ZImage(source=str(tiny.folder("z_image")))


KINDS = {
    "flux": Flux,
    "sd3": StableDiffusion3,
    "z_image": ZImage,
    "flux2_klein": Flux2Klein,
    "qwen_image": QwenImage,
}
SIGN = "a sign, a unit of time"


def negated(method):
    return lambda self, z_t, t, cond: -method(self, z_t, t, cond)


def in_thousands(method):
    return lambda self, z_t, t, cond: method(self, z_t, t * 1000, cond)


def turned_round(method):
    return lambda self, z_t, t, cond: method(self, z_t, 1 - t, cond)


def unmasked(method):
    def collate(self, conditionings):
        found = method(self, conditionings)
        mask = found.tensors["mask"]
        return Conditioning({**found.tensors, "mask": torch.ones_like(mask)})

    return collate


def padding_counted(method):
    def collate(self, conditionings):
        found = method(self, conditionings)
        length = torch.full_like(found.tensors["length"], found.tensors["embeds"].shape[1])
        return Conditioning({**found.tensors, "length": length})

    return collate


def padding_cut(method):
    """Texts end where their words do, in a family that reads the padding as well."""

    def encode(self, part, prompts):
        found = method(self, part, prompts)
        short = {"embeds": found[0].tensors["embeds"][:40]} if "embeds" in found[0].tensors else {}
        return [Conditioning({**c.tensors, **short}) for c in found]

    return encode


def guided(method):
    return lambda self, cond, rows, guidance=None: method(self, cond, rows, guidance=3.5)


FAULTS = [
    *((name, "denoise", fault, SIGN) for name in KINDS for fault in (negated, turned_round)),
    *((name, "denoise", in_thousands, SIGN) for name in ("flux", "sd3")),
    ("qwen_image", "collate", unmasked, "mask differs"),
    ("z_image", "collate", padding_counted, "length differs"),
    ("flux", "encode_part", padding_cut, "differs"),
    ("flux2_klein", "encode_part", padding_cut, "differs"),
    ("flux", "condition", guided, "guidance differs"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "fault", "said"), FAULTS)
def test_a_fault_of_the_family_is_seen(monkeypatch, tmp_path, name, method, fault, said):
    made = KINDS[name](source=str(tiny.folder(name)))
    with Trainer(tmp_path).context(model=made, **FLOW) as ctx:
        cls = type(made.open(ctx))
    monkeypatch.setattr(cls, method, fault(getattr(cls, method)))
    suite = FlowFamily()
    with pytest.raises(AssertionError, match=said):
        suite.test_it_predicts_what_diffusers_predicts(made, Trainer(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_another_shift_is_another_picture(monkeypatch, tmp_path, name):
    """Where steps lie is the schedule's, the size's and the family's own."""
    from dreambooth.helpers import live

    def another(solver, info, size, steps):
        if solver.config.use_dynamic_shifting:
            solver.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], mu=0.2)
        else:
            solver.set_shift(1.7)
            set_steps(solver, info, size, steps)

    monkeypatch.setattr(live, "set_steps", another)
    made = KINDS[name](source=str(tiny.folder(name)))
    with pytest.raises(AssertionError, match="draws something else"):
        FlowFamily().test_it_draws_what_diffusers_draws(made, Trainer(tmp_path))
