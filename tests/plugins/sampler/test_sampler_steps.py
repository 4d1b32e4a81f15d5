from __future__ import annotations

import pytest
import torch

from dreambooth_plugins.sampler.cfg import ClassifierFreeGuidance
from dreambooth_plugins.sampler.guidance import build_solver, evaluations
from dreambooth_plugins.sampler.steps import SOLVERS, STABLE_DIFFUSION


def test_the_interval_is_in_sigma_above_lo_and_up_to_hi():
    sampler = ClassifierFreeGuidance(interval=(0.28, 5.42))
    assert [sampler.guidance().at(s) for s in (0.28, 0.2801, 5.42, 5.43)] == [
        False,
        True,
        True,
        False,
    ]
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, 0)
    expected = [t for t, a in enumerate(abar.tolist()) if 0.28**2 < (1 - a) / a <= 5.42**2]
    table = evaluations("ddim", 1000, STABLE_DIFFUSION | {"steps_offset": 0})[::-1]
    assert [t for t, sigma in enumerate(table) if sampler.guidance().at(sigma)] == expected
    assert (expected[0], expected[-1]) == (73, 812)


SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


@pytest.mark.parametrize("flag", SIGMAS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_named_solver_is_not_the_models_own(solver, flag):
    theirs = {flag: True, "solver_order": 3, "algorithm_type": "dpmsolver", "skip_prk_steps": False}
    built = build_solver(solver, {**STABLE_DIFFUSION, **theirs})
    plain = build_solver(solver, STABLE_DIFFUSION)
    assert dict(built.config) == dict(plain.config)
    assert built.config.get("use_karras_sigmas", False) == solver.endswith("_karras")
    assert evaluations(solver, 11, {**STABLE_DIFFUSION, **theirs}) == evaluations(
        solver, 11, STABLE_DIFFUSION
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_price_is_what_the_solver_evaluates(solver):
    config = {**STABLE_DIFFUSION, "use_karras_sigmas": True, "timestep_spacing": "trailing"}
    sampler = ClassifierFreeGuidance(solver=solver, steps=11, interval=(0.28, 5.42))
    built = build_solver(solver, config)
    built.set_timesteps(11)
    if hasattr(built, "sigmas"):
        at = built.sigmas[: len(built.timesteps)].tolist()
    else:
        abar = built.alphas_cumprod[built.timesteps]
        at = ((1 - abar) / abar).sqrt().tolist()
    assert sampler.forwards(config) == sum(2 if 0.28 < sigma <= 5.42 else 1 for sigma in at)
    assert len(at) == 11 + (solver == "pndm")


@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"trained_betas": [0.01 + 0.0001 * i for i in range(200)], "num_train_timesteps": 200},
    ],
)
def test_the_models_schedule_is_kept(betas):
    built = build_solver("dpmpp_2m", STABLE_DIFFUSION | betas | {"steps_offset": 1})
    assert {name: built.config[name] for name in betas} == betas
    assert built.config.steps_offset == 1
