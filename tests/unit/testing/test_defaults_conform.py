"""The default plugins pass the suites that outside authors are given, a kind or more a slot."""

from __future__ import annotations

from dreambooth import testing
from dreambooth.plugins import component, registry


class TestComponents(testing.FreezingPolicyConformance):
    component = component("freezing", "components")


class TestAdapter(testing.FreezingPolicyConformance):
    component = component("freezing", "adapter")


class TestPriorPreservation(testing.LossConformance):
    component = component("loss", "prior_preservation")


class TestAdamW(testing.OptimizerConformance):
    component = component("optimizer", "adamw")


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


class TestDiversity(testing.MetricConformance):
    component = component("metric", "diversity")


class TestTimeLimit(testing.CallbackConformance):
    def make(self, pictures):
        return registry().kinds("callback")["time_limit"](minutes=60)
