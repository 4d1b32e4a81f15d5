"""The default plugins pass the suites that outside authors are given, a kind or more a slot."""

from __future__ import annotations

from typing import ClassVar

import pytest

from dreambooth import testing
from dreambooth.plugins import component, registry


class TestComponents(testing.FreezingPolicyConformance):
    component = component("freezing", "components")


class TestAdapter(testing.FreezingPolicyConformance):
    component = component("freezing", "adapter")


class TestToken(testing.FreezingPolicyConformance):
    component = component("freezing", "token")
    sections: ClassVar = {"prior": "none"}


@pytest.mark.slow
class TestPivotal(testing.FreezingPolicyConformance):
    component = component("freezing", "pivotal")
    sections: ClassVar = {"prior": "none"}


class TestPriorPreservation(testing.LossConformance):
    component = component("loss", "prior_preservation")


class TestAdamW(testing.OptimizerConformance):
    component = component("optimizer", "adamw")


@pytest.mark.slow
class TestAdamW8bit(testing.OptimizerConformance):
    def make(self, pictures):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra 8bit)")
        return component("optimizer", "adamw8bit")


class TestProdigy(testing.OptimizerConformance):
    def make(self, pictures):
        pytest.importorskip("prodigyopt", reason="prodigyopt is not installed (extra prodigy)")
        return component("optimizer", "prodigy")


class TestConstant(testing.LRScheduleConformance):
    component = component("lr_schedule", "constant")


class TestCosine(testing.LRScheduleConformance):
    component = component("lr_schedule", "cosine")


class TestDDPM(testing.SchedulerConformance):
    component = component("scheduler", "ddpm")


class TestGuidance(testing.SamplerConformance):
    def make(self, pictures):
        cls = type(component("sampler", "cfg"))
        return cls(steps=2)


class TestFolder(testing.DataSourceConformance):
    def make(self, pictures):
        return registry().kinds("data")["folder"](path=pictures, resolution=32)


class TestGenerated(testing.PriorConformance):
    def make(self, pictures):
        return type(component("prior", "generated"))(count=2, batch_size=2)


class TestNone(testing.PriorConformance):
    component = component("prior", "none")


class TestTiny(testing.ModelConformance):
    def make(self, pictures):
        return type(component("model", "stable_diffusion"))(source="builtin:tiny")


class TestDiffusers(testing.ExporterConformance):
    component = component("exporter", "diffusers")


class TestLora(testing.ExporterConformance):
    component = component("exporter", "lora")


class TestJsonl(testing.TrackerConformance):
    component = component("tracker", "jsonl")


@pytest.mark.slow
class TestWandb(testing.TrackerConformance):
    def make(self, pictures):
        pytest.importorskip("wandb", reason="wandb is not installed (extra wandb)")
        return registry().kinds("tracker")["wandb"](mode="offline")


class TestDiversity(testing.MetricConformance):
    component = component("metric", "diversity")


class TestSubjectSimilarity(testing.MetricConformance):
    def make(self, pictures):
        cls = registry().kinds("metric")["perceptual_diversity"]
        return cls(encoder="emoji-64-clip")

    def exercise(self, made, trainer):
        """Prompts of the suite do not name the subject: the scores of a run are looked at."""
        from PIL import Image

        with trainer.context(**self.filled(made)) as ctx:
            prompt = ctx.job.subject.fill("a {identifier} {class_noun}")
            pair = [Image.new("RGB", (32, 32), c) for c in ("red", "blue")]
            return made.score({prompt: pair}, pair, ctx)


class TestTooFew(testing.FindingRuleConformance):
    component = component("finding", "too_few")


class TestTimeLimit(testing.CallbackConformance):
    def make(self, pictures):
        return registry().kinds("callback")["time_limit"](minutes=60)
