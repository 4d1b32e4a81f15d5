from __future__ import annotations

import json
import math
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from pydantic import ValidationError

from dreambooth.errors import JobError
from dreambooth.interfaces import Draw, LatentSpec, ModelInfo
from dreambooth_plugins.scheduler.ddpm import DDPM

SD = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "clip_sample": False,
    "trained_betas": None,
}
SCHEDULES = [
    SD,
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
    {"trained_betas": np.linspace(0.001, 0.03, 50).tolist(), "num_train_timesteps": 50},
]


def model_info(prediction="epsilon", schedule=SD):
    return ModelInfo("stable_diffusion", prediction, schedule, (), {}, LatentSpec(4, 8, 8), 512)


def rngs(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def problems(component, info):
    return list(component.check(SimpleNamespace(), info))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_table_equals_diffusers_to_the_bit(schedule):
    mine = DDPM().open(model_info(schedule=schedule)).alphas_cumprod
    assert torch.equal(mine, DDPMScheduler.from_config(schedule).alphas_cumprod)


def test_stable_diffusion_table_equals_the_formula():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = torch.from_numpy(np.cumprod(1 - betas))
    schedule = DDPM().open(model_info())
    torch.testing.assert_close(schedule.alphas_cumprod.double(), abar, rtol=3e-5, atol=0)
    assert math.sqrt(schedule.alphas_cumprod[-1]) == pytest.approx(0.068265, abs=2e-6)
    assert schedule.snr(torch.tensor([999])).item() == pytest.approx(0.004682, abs=1e-6)
    assert schedule.snr(torch.tensor([145, 147])).sub(5).sign().tolist() == [1, -1]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noising_and_target_equal_diffusers(prediction, schedule):
    mine = DDPM().open(model_info(prediction, schedule))
    theirs = DDPMScheduler.from_config(schedule)
    draw = mine.draw((4, 5, 6), rngs(1, 2, 3))
    z = torch.randn((3, 4, 5, 6), generator=rngs(9)[0])
    z_t = mine.add_noise(z, draw)
    torch.testing.assert_close(z_t, theirs.add_noise(z, draw.noise, draw.t), rtol=1e-6, atol=1e-6)
    expected = draw.noise
    if prediction == "v_prediction":
        expected = theirs.get_velocity(z, draw.noise, draw.t)
    target = mine.target(z, draw)
    torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine.snr(draw.t), compute_snr(theirs, draw.t), rtol=1e-5, atol=0)
    torch.testing.assert_close(mine.to_x0(target, z_t, draw.t), z, rtol=1e-3, atol=1e-3)


def test_a_row_depends_on_its_own_generator_alone():
    schedule = DDPM(offset_noise=0.1).open(model_info())
    three = schedule.draw((4, 8, 8), rngs(5, 6, 7))
    one = schedule.draw((4, 8, 8), rngs(6))
    assert three.t.dtype == torch.int64
    assert three.noise.dtype == torch.float32
    assert torch.equal(three.t[1:2], one.t)
    assert torch.equal(three.noise[1:2], one.noise)


def test_offset_is_drawn_after_timestep_and_noise():
    plain = DDPM().open(model_info()).draw((4, 8, 8), rngs(3))
    offset = DDPM(offset_noise=0.1).open(model_info()).draw((4, 8, 8), rngs(3))
    assert torch.equal(plain.t, offset.t)
    added = (offset.noise - plain.noise)[0]
    torch.testing.assert_close(added, added[:, :1, :1].expand_as(added), rtol=0, atol=1e-6)
    [g] = rngs(3)
    torch.randint(0, 1000, (1,), generator=g)
    torch.randn((4, 8, 8), generator=g)
    constant = 0.1 * torch.randn((4, 1, 1), generator=g)
    torch.testing.assert_close(added[:, :1, :1], constant, rtol=0, atol=1e-6)


def test_timesteps_cover_the_range_evenly():
    schedule = DDPM(timestep_range=(10, 14)).open(model_info())
    t = schedule.draw((1, 1, 1), rngs(*range(2000))).t
    counts = torch.bincount(t, minlength=15)
    assert counts[:10].sum() == 0
    assert counts[14] == 0
    assert counts[10:14].min() > 420
    assert counts.sum() == 2000


def test_zero_terminal_snr_equals_the_formula_and_stays_finite():
    schedule = DDPM(zero_terminal_snr=True).open(model_info("v_prediction"))
    s = DDPMScheduler.from_config(SD).alphas_cumprod.double().sqrt()
    expected = ((s - s[-1]) * s[0] / (s[0] - s[-1])) ** 2
    torch.testing.assert_close(schedule.alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-7)
    last = torch.tensor([999])
    assert schedule.snr(last).item() == 0.0
    z, noise = torch.randn((2, 1, 4, 8, 8), generator=rngs(0)[0])
    draw = Draw(last, noise)
    torch.testing.assert_close(schedule.add_noise(z, draw), noise)
    torch.testing.assert_close(schedule.target(z, draw), -z)
    torch.testing.assert_close(schedule.to_x0(-z, noise, last), z)


def test_a_model_that_brings_zero_terminal_snr_is_trained_on_it():
    info = model_info("v_prediction", {**SD, "rescale_betas_zero_snr": True})
    schedule = DDPM().open(info)
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.solver_config((512, 512), 30)["timestep_spacing"] == "trailing"


def test_zero_terminal_snr_is_refused_for_epsilon_models():
    [problem] = problems(DDPM(zero_terminal_snr=True), model_info())
    assert problem.at == ("scheduler", "zero_terminal_snr")
    assert "v-prediction" in problem.hint
    with pytest.raises(JobError, match="zero_terminal_snr"):
        DDPM(zero_terminal_snr=True).open(model_info())
    assert not problems(DDPM(zero_terminal_snr=True), model_info("v_prediction"))
    [problem] = problems(DDPM(), model_info("epsilon", {**SD, "rescale_betas_zero_snr": True}))
    assert problem.at == ("model",)


def test_flow_models_and_unknown_schedules_are_refused():
    with pytest.raises(JobError, match="epsilon or v"):
        DDPM().open(model_info("flow"))
    [problem] = problems(DDPM(), model_info(schedule={"beta_schedule": "sigmoid"}))
    assert "sigmoid" in problem.message


def test_ranges_are_checked():
    with pytest.raises(ValidationError, match="lo must be below hi"):
        DDPM(timestep_range=(20, 20))
    [problem] = problems(DDPM(timestep_range=(0, 1001)), model_info())
    assert problem.at == ("scheduler", "timestep_range")
    assert not problems(DDPM(timestep_range=(0, 1000)), model_info())
    assert not problems(DDPM(timestep_range=(0, 5000)), None)


def test_a_job_file_gives_the_range_as_a_list():
    text = '{"kind": "ddpm", "timestep_range": [100, 900], "offset_noise": 0.05}'
    assert DDPM.model_validate_json(text, strict=True).timestep_range == (100, 900)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_solvers_built_from_the_configuration_have_the_table_of_training(schedule, zero):
    opened = DDPM(zero_terminal_snr=zero).open(model_info("v_prediction", schedule))
    config = json.loads(json.dumps(opened.solver_config((512, 512), 30)))
    for name in ("DDIM", "DDPM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"):
        solver = getattr(diffusers, f"{name}Scheduler").from_config(config)
        # Some solvers take 2^-24 for the zero at the end.
        torch.testing.assert_close(
            solver.alphas_cumprod, opened.alphas_cumprod, rtol=0, atol=2**-24 if zero else 0
        )
        assert solver.config.prediction_type == "v_prediction"
        assert solver.config.get("clip_sample", False) is False


def test_the_configuration_keeps_what_the_model_says():
    config = DDPM().open(model_info()).solver_config((512, 512), 30)
    assert {**config, **SD} == config
    assert "timestep_spacing" not in config
    assert config["prediction_type"] == "epsilon"
    bare = DDPM().open(model_info(schedule={"clip_sample": True})).solver_config((8, 8), 1)
    assert (bare["clip_sample"], bare["set_alpha_to_one"], bare["steps_offset"]) == (
        False,
        False,
        1,
    )
    assert (bare["beta_schedule"], bare["beta_end"]) == ("linear", 0.02)
    assert bare["_class_name"] == "DDIMScheduler"  # saved pipelines name one


def test_a_zero_terminal_export_names_a_solver_that_can_sample_it():
    opened = DDPM(zero_terminal_snr=True).open(model_info("v_prediction"))
    assert opened.solver_config((8, 8), 1)["_class_name"] == "DDIMScheduler"
    euler = model_info("v_prediction", {**SD, "_class_name": "EulerDiscreteScheduler"})
    config = DDPM(zero_terminal_snr=True).open(euler).solver_config((8, 8), 1)
    assert config["_class_name"] == "EulerDiscreteScheduler"
