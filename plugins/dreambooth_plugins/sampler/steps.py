"""The solvers there are, what each is named for, and guidance. Known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

SolverName = Literal[
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
    "unipc",
    "euler",
    "euler_a",
    "ddim",
    "pndm",
    "ddpm",
]

STABLE_DIFFUSION: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
"""The schedule of Stable Diffusion 1.x and 2.x."""


SCHEDULE_KEYS = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "rescale_betas_zero_snr",
        "timestep_spacing",
        "steps_offset",
        "set_alpha_to_one",
        "final_sigmas_type",
        "lambda_min_clipped",
        "clip_sample",
        "clip_sample_range",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
    }
)
"""What a `scheduler_config.json` says about the model's schedule and where it ends.

The rest is how the model's own solver takes its steps (Karras, exponential or beta sigmas, order,
...): a job that names a solver gets that one, and not a mixture of the two.
"""


@dataclass(frozen=True)
class Guidance:
    """How strongly, and at which noise levels, predictions follow the prompt."""

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def at(self, sigma: float) -> bool:
        """Say whether the unconditional half is needed at this sigma."""
        if self.scale == 1.0:
            return False
        return self.interval is None or self.interval[0] < sigma <= self.interval[1]


@dataclass(frozen=True)
class Solver:
    """How diffusers builds a solver."""

    class_name: str
    options: Mapping[str, Any]
    zero_snr: bool = True
    """Whether the class knows `rescale_betas_zero_snr`."""


def _dpm(**options: Any) -> Solver:
    return Solver("DPMSolverMultistepScheduler", {"solver_order": 2, **options})


SOLVERS: Mapping[SolverName, Solver] = {
    "dpmpp_2m": _dpm(algorithm_type="dpmsolver++"),
    "dpmpp_2m_karras": _dpm(algorithm_type="dpmsolver++", use_karras_sigmas=True),
    "dpmpp_2m_sde": _dpm(algorithm_type="sde-dpmsolver++"),
    "dpmpp_2m_sde_karras": _dpm(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
    "unipc": Solver("UniPCMultistepScheduler", {}),
    "euler": Solver("EulerDiscreteScheduler", {}),
    "euler_a": Solver("EulerAncestralDiscreteScheduler", {}),
    "ddim": Solver("DDIMScheduler", {}),
    "pndm": Solver("PNDMScheduler", {"skip_prk_steps": True}, zero_snr=False),
    "ddpm": Solver("DDPMScheduler", {}),
}
