from __future__ import annotations

import pytest
import torch

from dreambooth_plugins.sampler.cfg import ClassifierFreeGuidance
from dreambooth_plugins.sampler.guidance import build_solver
from dreambooth_plugins.sampler.steps import SOLVERS, STABLE_DIFFUSION, sigmas


def test_the_interval_is_in_sigma_above_lo_and_up_to_hi():
    sampler = ClassifierFreeGuidance(interval=(0.28, 5.42))
    assert [sampler.guided(s) for s in (0.28, 0.2801, 5.42, 5.43)] == [False, True, True, False]
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, 0)
    expected = [t for t, a in enumerate(abar.tolist()) if 0.28**2 < (1 - a) / a <= 5.42**2]
    table = sigmas("ddim", 1000, STABLE_DIFFUSION | {"steps_offset": 0})[::-1]
    assert [t for t, sigma in enumerate(table) if sampler.guided(sigma)] == expected
    assert (expected[0], expected[-1]) == (73, 812)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_sigmas_counted_for_the_plan_are_the_solvers(solver, spacing, zero):
    if zero and not SOLVERS[solver].zero_snr:
        pytest.skip("this solver refuses such a schedule")
    config = STABLE_DIFFUSION | {"timestep_spacing": spacing, "rescale_betas_zero_snr": zero}
    config |= {"skip_prk_steps": True, "prediction_type": "v_prediction"}
    built = build_solver(solver, config)
    built.set_timesteps(11)
    if hasattr(built, "sigmas"):
        theirs = built.sigmas[:-1].double()
    else:
        abar = built.alphas_cumprod.double()[built.timesteps].clamp_min(2**-24)
        theirs = ((1 - abar) / abar).sqrt()
    ours = torch.tensor(sigmas(solver, 11, config), dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2", "beta_start": 1e-4, "beta_end": 0.02},
        {"trained_betas": [0.01 + 0.0001 * i for i in range(200)], "num_train_timesteps": 200},
    ],
)
def test_sigmas_know_the_beta_schedules(betas):
    config = STABLE_DIFFUSION | betas
    built = build_solver("dpmpp_2m", config)
    built.set_timesteps(7)
    ours = torch.tensor(sigmas("dpmpp_2m", 7, config))
    torch.testing.assert_close(ours, built.sigmas[:-1], rtol=2e-3, atol=1e-4)
