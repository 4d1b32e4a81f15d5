"""Where on the noise schedule a solver evaluates the network, counted without torch.

For the plan alone; sampling asks the solver itself. A test holds the two together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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


@dataclass(frozen=True)
class Solver:
    """How diffusers builds a solver."""

    class_name: str
    options: Mapping[str, Any]
    spacing: str
    """The class's `timestep_spacing` where the configuration names none."""
    zero_snr: bool = True
    """Whether the class knows `rescale_betas_zero_snr`."""
    end_point: bool = False
    """Whether the schedule's last point is counted as a step not taken (DPM-Solver, UniPC)."""

    @property
    def karras(self) -> bool:
        """Whether sigmas follow Karras et al. 2022 instead of the timesteps."""
        return bool(self.options.get("use_karras_sigmas"))


def _dpm(**options: Any) -> Solver:
    return Solver("DPMSolverMultistepScheduler", options, "linspace", end_point=True)


SOLVERS: Mapping[SolverName, Solver] = {
    "dpmpp_2m": _dpm(algorithm_type="dpmsolver++"),
    "dpmpp_2m_karras": _dpm(algorithm_type="dpmsolver++", use_karras_sigmas=True),
    "dpmpp_2m_sde": _dpm(algorithm_type="sde-dpmsolver++"),
    "dpmpp_2m_sde_karras": _dpm(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
    "unipc": Solver("UniPCMultistepScheduler", {}, "linspace", end_point=True),
    "euler": Solver("EulerDiscreteScheduler", {}, "linspace"),
    "euler_a": Solver("EulerAncestralDiscreteScheduler", {}, "linspace"),
    "ddim": Solver("DDIMScheduler", {}, "leading"),
    "pndm": Solver("PNDMScheduler", {}, "leading", zero_snr=False),
    "ddpm": Solver("DDPMScheduler", {}, "leading"),
}


def sigmas(name: SolverName, count: int, config: Mapping[str, Any]) -> list[float]:
    """Return sigma = sqrt((1 - abar) / abar) at each evaluation of a solver with `count` steps.

    `config` is a `scheduler_config.json`. PNDM evaluates once more than it has steps.
    """
    solver = SOLVERS[name]
    table = _sigma_table(config)
    if solver.karras:
        low, high = table[0] ** (1 / 7), table[-1] ** (1 / 7)
        return [(high + i / max(count - 1, 1) * (low - high)) ** 7 for i in range(count)]
    points = _timesteps(solver, count, len(table), config)
    if name == "pndm" and count > 1:
        points = [points[0], points[1], *points[1:]]
    return [_interpolate(table, t) for t in points]


def _timesteps(solver: Solver, count: int, total: int, config: Mapping[str, Any]) -> list[float]:
    spacing = config.get("timestep_spacing") or solver.spacing
    extra = 1 if solver.end_point else 0
    if spacing == "trailing":
        return [round(total - i * total / count) - 1 for i in range(count)]
    if spacing == "leading":
        stride, offset = total // (count + extra), config.get("steps_offset", 0)
        return [i * stride + offset for i in range(count - 1 + extra, extra - 1, -1)]
    gaps = max(count - 1 + extra, 1)
    exact = [(total - 1) * (1 - i / gaps) for i in range(count)]
    return exact if solver.class_name.startswith("Euler") else [float(round(t)) for t in exact]


def _sigma_table(config: Mapping[str, Any]) -> list[float]:
    roots = [math.sqrt(1 / abar - 1) for abar in accumulate(_alphas(config), lambda a, b: a * b)]
    if not config.get("rescale_betas_zero_snr"):
        return roots
    s = [1 / math.sqrt(1 + sigma**2) for sigma in roots]
    scaled = [(x - s[-1]) * s[0] / (s[0] - s[-1]) for x in s]
    # Solvers that divide by abar take 2^-24 for the zero at the end.
    return [math.sqrt(1 / max(x * x, 2**-24) - 1) for x in scaled]


def _alphas(config: Mapping[str, Any]) -> Iterable[float]:
    if config.get("trained_betas") is not None:
        return [1 - beta for beta in config["trained_betas"]]
    total, kind = config["num_train_timesteps"], config["beta_schedule"]
    if kind == "squaredcos_cap_v2":
        bar = [math.cos((i / total + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(total + 1)]
        return [max(b / a, 0.001) for a, b in pairwise(bar)]
    power = 2 if kind == "scaled_linear" else 1
    first, last = config["beta_start"] ** (1 / power), config["beta_end"] ** (1 / power)
    steps = max(total - 1, 1)
    return [1 - (first + (last - first) * i / steps) ** power for i in range(total)]


def _interpolate(table: list[float], t: float) -> float:
    low = min(max(math.floor(t), 0), len(table) - 1)
    high = min(low + 1, len(table) - 1)
    return table[low] + (t - low) * (table[high] - table[low])
