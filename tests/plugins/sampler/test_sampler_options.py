from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from dreambooth.errors import JobError
from dreambooth.interfaces import LatentSpec, ModelInfo
from dreambooth_plugins.sampler.cfg import ClassifierFreeGuidance
from dreambooth_plugins.sampler.guidance import build_solver, guide
from dreambooth_plugins.scheduler.ddpm import DDPM


def test_guide_equals_the_formula():
    g = torch.Generator().manual_seed(0)
    uncond, cond = torch.randn((2, 3, 4, 5, 5), generator=g)
    plain = uncond + 7.5 * (cond - uncond)
    torch.testing.assert_close(guide(uncond, cond, 7.5), plain)
    torch.testing.assert_close(guide(uncond, cond, 1.0), cond)
    torch.testing.assert_close(guide(uncond, cond, 0.0), uncond)
    whole = guide(uncond, cond, 7.5, 1.0)
    torch.testing.assert_close(whole.std((1, 2, 3)), cond.std((1, 2, 3)))
    mixed = guide(uncond, cond, 7.5, 0.7)
    torch.testing.assert_close(mixed, 0.7 * whole + 0.3 * plain)
    assert torch.isfinite(guide(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), 7.5, 0.7)).all()


def found(sampler, prediction="v_prediction", zero=False, total=1000):
    job = SimpleNamespace(scheduler=DDPM(zero_terminal_snr=zero))
    schedule = {"num_train_timesteps": total}
    info = ModelInfo("x", prediction, schedule, (), {}, LatentSpec(4, 8, 8), 512)
    return [p.at for p in sampler.check(job, info)]


def test_check_finds_what_does_not_fit_the_schedule():
    assert found(ClassifierFreeGuidance(), zero=True) == []
    assert found(ClassifierFreeGuidance(solver="pndm")) == []
    assert found(ClassifierFreeGuidance(solver="pndm"), zero=True) == [("sampler", "solver")]
    assert found(ClassifierFreeGuidance(steps=50), total=50) == [("sampler", "steps")]
    assert found(ClassifierFreeGuidance(), prediction="flow") == [("sampler",)]


def test_prompts_encoded_beforehand_are_those_sampling_needs():
    assert ClassifierFreeGuidance(negative="blur").extra_prompts() == ["blur"]
    assert ClassifierFreeGuidance(guidance_scale=1.0).extra_prompts() == []


@pytest.mark.parametrize(
    "bad", [{"interval": (2.0, 1.0)}, {"rescale": 1.5}, {"guidance_scale": -1}, {"steps": 0}]
)
def test_options_are_bounded(bad):
    with pytest.raises(ValidationError):
        ClassifierFreeGuidance(**bad)


def test_pndm_is_refused_on_a_zero_terminal_schedule():
    with pytest.raises(JobError, match="zero-terminal"):
        build_solver("pndm", {"rescale_betas_zero_snr": True})
