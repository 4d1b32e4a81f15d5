"""What the slot's base promises, and what this sampler does: python -m pytest."""

import pytest
from dreambooth.testing import SamplerConformance

from decaying_guidance.plugin import DecayingGuidance


class TestDecayingGuidance(SamplerConformance):
    component = DecayingGuidance(steps=3)


def test_the_scale_falls_from_the_first_to_the_last():
    sampler = DecayingGuidance(steps=5, guidance_scale=9.0, last_scale=1.0)
    scales = [sampler.scale(step) for step in range(5)]
    assert scales[0] == 9.0
    assert scales[2] == pytest.approx(5.0)
    assert scales[-1] == 1.0
    assert scales == sorted(scales, reverse=True)


def test_the_last_step_without_guidance_costs_one_forward():
    assert DecayingGuidance(steps=5).forwards() == 9.0
    assert DecayingGuidance(steps=5, last_scale=2.0).forwards() == 10.0
