"""Times, paths and targets of flow matching: z_s = (1 - s) x0 + s noise, target noise - x0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.helpers.flow import shift_of
from dreambooth.interfaces import Draw, NoiseSchedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.interfaces import Density, ModelInfo

SOLVER = "FlowMatchEulerDiscreteScheduler"
"""diffusers' class that samples on such a schedule."""


@dataclass(frozen=True)
class Times:
    """A density of times before they are shifted (Esser et al. 2024, section 3.1)."""

    density: Density
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29

    def at(self, u: Tensor) -> Tensor:
        """Return the times at quantiles u in (0, 1), ascending with u; float64."""
        u = u.double()
        if self.density == "logit_normal":
            return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        if self.density == "uniform":
            return u
        # f(u) = 1 - u - scale (cos^2(pi u / 2) - 1 + u) falls with u: the quantiles are f(1 - u).
        u = 1.0 - u
        return 1.0 - u - self.scale * (torch.cos(math.pi * u / 2.0) ** 2 - 1.0 + u)


class FlowSchedule(NoiseSchedule):
    """Continuous times of a model that predicts noise - x0. `shift` None is the model's own."""

    def __init__(
        self, info: ModelInfo, times: Times, *, shift: float | None, weighting: str = "none"
    ) -> None:
        self.info, self.times, self.weighting = info, times, weighting
        self._shift = shift
        self.first = 1.0 / float(info.schedule.get("num_train_timesteps", 1000))
        """The earliest time there is: a published schedule's first step above a clean picture."""

    def draw(self, shape: tuple[int, int, int], rngs: Sequence[torch.Generator]) -> Draw:
        """Draw row i from `rngs[i]`: time, then noise.

        t is s in float32 [B], the noise float32 [B, *shape]; both on the CPU.
        """
        rows = [
            (
                torch.rand((1,), generator=rng, dtype=torch.float64),
                torch.randn(shape, generator=rng),
            )
            for rng in rngs
        ]
        u = torch.cat([row for row, _ in rows])
        return Draw(self._shifted(u, shape[1:]), torch.stack([noise for _, noise in rows]))

    def timestep_quantiles(
        self, count: int, rng: torch.Generator, size: tuple[int, int] = (1, 1)
    ) -> Tensor:
        """Return the times at (i + 1/2) / count, float32 [count]; nothing is drawn."""
        return self._shifted((torch.arange(count) + 0.5) / count, size)

    def shift(self, size: tuple[int, int]) -> float:
        """Return the shift a for latents of `size` (h, w)."""
        return shift_of(self.info, size) if self._shift is None else self._shift

    def _shifted(self, u: Tensor, size: tuple[int, int]) -> Tensor:
        s, a = self.times.at(u.double().clamp(1e-12, 1.0 - 1e-12)), self.shift(size)
        return (a * s / (1.0 + (a - 1.0) * s)).clamp(self.first, 1.0).float()

    def add_noise(self, z: Tensor, draw: Draw) -> Tensor:
        """Return (1 - s) z + s noise, float32."""
        s = _rows(draw.t, z)
        return (1.0 - s) * z + s * draw.noise.to(z.device)

    def target(self, z: Tensor, draw: Draw) -> Tensor:
        """Return noise - z, float32."""
        return draw.noise.to(z.device) - z

    def to_x0(self, pred: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """Return z_s - s v, float32."""
        return z_t - _rows(t, z_t) * pred

    def snr(self, t: Tensor) -> None:
        """There is none: weights by it were made for variance-preserving schedules."""

    def weight(self, t: Tensor) -> Tensor | None:
        """Return 1 / s^2 or 2 / (pi (1 - 2 s + 2 s^2)), float32 [B]; None without weighting."""
        if self.weighting == "none":
            return None
        if self.weighting == "sigma_sqrt":
            return t.float() ** -2.0
        return 2.0 / (math.pi * (1.0 - 2.0 * t + 2.0 * t**2)).float()

    def solver_config(self, size: tuple[int, int], steps: int) -> dict[str, Any]:
        """Return the model's own scheduler configuration: what training shifts by is not in it.

        Pictures are drawn on the model's own table whatever times training was given.
        """
        return {"_class_name": SOLVER, **self.info.schedule}


def _rows(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like.device, torch.float32)[:, None, None, None]
