"""The flow-matching families pass the suite of one; faults of each kind are seen."""

from __future__ import annotations

from typing import ClassVar

import tiny

from dreambooth.testing import FamilyConformance
from dreambooth_plugins.model import Flux, Flux2Klein, QwenImage, StableDiffusion3, ZImage

FLOW = {"scheduler": {"kind": "flow"}, "sampler": {"kind": "flow", "steps": 2}}


class FlowFamily(FamilyConformance):
    sections: ClassVar = FLOW


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


KINDS = {"flux": Flux, "sd3": StableDiffusion3, "z_image": ZImage}
