"""Default samplers."""

from __future__ import annotations

from dreambooth import Sampler, hookimpl
from dreambooth_plugins.sampler.auto import Auto
from dreambooth_plugins.sampler.cfg import ClassifierFreeGuidance
from dreambooth_plugins.sampler.flow import FlowSampler


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    """Bring `auto`, `cfg` and `flow`."""
    return [Auto, ClassifierFreeGuidance, FlowSampler]
