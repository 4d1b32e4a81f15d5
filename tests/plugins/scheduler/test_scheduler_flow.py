"""Times, paths and weights of flow matching, against diffusers' own functions and the formulas."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)

from dreambooth.errors import JobError
from dreambooth.helpers.flow import mu_of, shift_of
from dreambooth.interfaces import Draw, FlowSpec, LatentSpec, ModelInfo
from dreambooth.testing import SchedulerConformance
from dreambooth_plugins.scheduler.flow import Flow
from dreambooth_plugins.scheduler.flow_schedule import Times

DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def info(schedule=None, flow=None, patch=2):
    named = {"_class_name": "FlowMatchEulerDiscreteScheduler", **(schedule or {})}
    spec = LatentSpec(4, 8, 8 * patch, patch)
    return ModelInfo("x", "flow", named, (), {}, spec, 512, flow=flow or FlowSpec())


def rngs(count):
    return [torch.Generator().manual_seed(k) for k in range(count)]


class TestFlow(SchedulerConformance):
    component: ClassVar = Flow()

    def opened(self, made, trainer):
        return made.open(info({"shift": 3.0}))

    def test_a_run_with_it_resumes_exactly(self):
        pytest.skip("the model here predicts no flow: held by tests/families/test_flow_runs.py")

    def test_a_job_takes_it_and_its_check_answers_problems(self, made, trainer):
        from dreambooth.jobs.checks import preflight

        job = trainer.job(**self.filled(made))
        assert any("set scheduler: ddpm" in problem.hint for problem in preflight(job))


@pytest.mark.parametrize("density", ["logit_normal", "mode"])
def test_densities_are_those_of_diffusers(density):
    drawn = compute_density_for_timestep_sampling(
        density, 40_000, 0.3, 0.8, 1.29, generator=torch.Generator().manual_seed(0)
    )
    asked = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98], dtype=torch.float64)
    ours = Times(density, 0.3, 0.8, 1.29).at(asked)
    torch.testing.assert_close(ours.float(), drawn.quantile(asked.float()), atol=0.01, rtol=0)


def test_times_ascend_and_reach_both_ends():
    for density in ("uniform", "logit_normal", "mode"):
        found = Times(density).at(torch.linspace(1e-9, 1 - 1e-9, 501, dtype=torch.float64))
        assert (found.diff() > 0).all(), density
        assert found[0] < 0.01
        assert found[-1] > 0.99


@pytest.mark.parametrize("weighting", ["sigma_sqrt", "cosmap"])
def test_weights_are_those_of_diffusers(weighting):
    s = torch.linspace(0.01, 1.0, 50)
    ours = Flow(weighting=weighting).open(info()).weight(s)
    torch.testing.assert_close(
        ours, compute_loss_weighting_for_sd3(weighting, s), rtol=1e-5, atol=0
    )
    assert Flow().open(info()).weight(s) is None


def test_a_schedule_of_one_shift_moves_times_as_diffusers_does():
    table = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = Flow(density="uniform").open(info({"shift": 3.0}))
    drawn = schedule.timestep_quantiles(1000, torch.Generator(), (4, 4))
    u = (torch.arange(1000) + 0.5) / 1000
    torch.testing.assert_close(drawn, (3 * u / (1 + 2 * u)), rtol=1e-5, atol=0)
    assert table.sigmas.flip(0)[499] == pytest.approx(float(3 * 0.5 / 2.0), rel=1e-3)


@pytest.mark.parametrize(("size", "kind"), [((16, 24), "exponential"), ((128, 128), "linear")])
def test_a_schedule_by_size_moves_times_as_diffusers_does(size, kind):
    facts = info({**DYNAMIC, "time_shift_type": kind})
    solver = FlowMatchEulerDiscreteScheduler(**DYNAMIC, time_shift_type=kind)
    u = (torch.arange(50) + 0.5) / 50
    theirs = solver.time_shift(mu_of(facts, size), 1.0, u)
    ours = Flow(density="uniform").open(facts).timestep_quantiles(50, torch.Generator(), size)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_line_of_mu_is_the_pipelines():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for size in ((32, 32), (64, 96), (128, 128)):
        tokens = size[0] * size[1] // 4
        assert mu_of(info(DYNAMIC), size) == pytest.approx(calculate_shift(tokens))
    assert shift_of(info(DYNAMIC), (128, 128)) == pytest.approx(math.exp(1.15))


def test_a_family_may_have_a_rule_of_its_own():
    facts = info(DYNAMIC, FlowSpec(mu=lambda tokens, steps: tokens / 100 + steps, steps=7))
    assert mu_of(facts, (20, 20)) == pytest.approx(1.0 + 7)
    assert mu_of(facts, (20, 20), 3) == pytest.approx(1.0 + 3)


def test_paths_and_targets():
    schedule = Flow().open(info({"shift": 3.0}))
    z = torch.randn(3, 4, 4, 6, generator=rngs(1)[0])
    draw = schedule.draw((4, 4, 6), rngs(3))
    assert draw.t.dtype == torch.float32
    assert ((draw.t > 0) & (draw.t <= 1)).all()
    s = draw.t[:, None, None, None]
    torch.testing.assert_close(schedule.add_noise(z, draw), (1 - s) * z + s * draw.noise)
    torch.testing.assert_close(schedule.target(z, draw), draw.noise - z)
    ends = Draw(torch.tensor([1.0, 1.0, 1.0]), draw.noise)
    torch.testing.assert_close(schedule.add_noise(z, ends), draw.noise)
    assert schedule.snr(draw.t) is None
    assert schedule.snr_table() is None


def test_what_is_drawn_spreads_as_the_quantiles_say():
    facts = info(DYNAMIC)
    schedule = Flow(density="logit_normal", logit_mean=-0.5).open(facts)
    drawn = schedule.draw((1, 32, 48), rngs(1) * 4000).t
    wanted = schedule.timestep_quantiles(9, torch.Generator(), (32, 48))
    found = drawn.quantile((torch.arange(9) + 0.5) / 9)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
    other = schedule.timestep_quantiles(9, torch.Generator(), (128, 128))
    assert (other > wanted).all(), "larger pictures want more noise"


def test_defaults_are_the_familys():
    uniform = info({"shift": 2.0}, FlowSpec(density="uniform"))
    schedule = Flow().open(uniform)
    assert schedule.times.density == "uniform"
    assert schedule.shift((8, 8)) == 2.0
    assert Flow(shift="none").open(uniform).shift((8, 8)) == 1.0
    assert Flow(shift=5).open(uniform).shift((8, 8)) == 5.0
    config = Flow(shift=5).open(uniform).solver_config((8, 8), 4)
    assert config["shift"] == 2.0, "pictures are drawn on the model's own table"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_other_models_are_refused_in_words(prediction):
    other = dataclasses.replace(info(), prediction=prediction)
    assert "set scheduler: ddpm" in [p.hint for p in Flow().check(None, other)]
    with pytest.raises(JobError, match="flow velocity"):
        Flow().open(other)


@pytest.mark.parametrize("option", [{"min_snr_gamma": 5.0}, {"debiased": True}])
def test_weights_by_a_noise_ratio_are_refused_in_words(small_job, option):
    from dreambooth.jobs.checks import preflight

    job = small_job(scheduler="flow", loss={"kind": "prior_preservation", **option})
    assert any("signal-to-noise ratio" in problem.message for problem in preflight(job))
