"""The scheduler slot: how training noises latents, and what the network should answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth.component import Component
from dreambooth.component.door import Called

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from dreambooth.component.model_info import ModelInfo


QUANTILE_DRAWS = 64
"""Timesteps drawn for each quantile of a schedule that cannot name them."""


@dataclass(frozen=True)
class Draw:
    """The random part of B training rows."""

    t: Tensor
    """[B], timesteps: int64 for discrete schedules, the time s in [0, 1] in float32 for flows."""
    noise: Tensor
    """[B, C, h, w], float32, offset noise included."""


class NoiseSchedule(Called, ABC):
    """An opened noise schedule: pure functions of tensors.

    Tables live on the CPU in float64/float32 and follow the device of what they are given.
    """

    @abstractmethod
    def draw(self, shape: tuple[int, int, int], rngs: Sequence[torch.Generator]) -> Draw:
        """Draw timestep and noise, one CPU generator a row; `shape` is (C, h, w).

        Row i depends on `rngs[i]` alone, in a fixed order: timestep first, then noise.
        """

    def timestep_quantiles(
        self, count: int, rng: torch.Generator, size: tuple[int, int] = (1, 1)
    ) -> Tensor:
        """Return `count` timesteps at the quantiles (i + 1/2) / count of what `draw` gives.

        [count], ascending, of the type of `Draw.t`: validation spreads its rows with them. `size`
        is that of the latents, (h, w). The default draws `QUANTILE_DRAWS` a quantile from `rng`; a
        schedule that knows its distribution returns the exact ones.
        """
        drawn = self.draw((1, *size), [rng] * (count * QUANTILE_DRAWS)).t
        return drawn.sort().values[QUANTILE_DRAWS // 2 :: QUANTILE_DRAWS]

    @abstractmethod
    def add_noise(self, z: Tensor, draw: Draw) -> Tensor:
        """Return z_t, the latents z [B, C, h, w] noised to `draw.t`."""

    @abstractmethod
    def target(self, z: Tensor, draw: Draw) -> Tensor:
        """Return what the network should predict: epsilon, v, or noise - z."""

    @abstractmethod
    def to_x0(self, pred: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """Return the clean latents a prediction implies."""

    @abstractmethod
    def snr(self, t: Tensor) -> Tensor | None:
        """Return abar/(1-abar) at t [B]; None for flow models."""

    def weight(self, t: Tensor) -> Tensor | None:
        """Return [B] float32, what the schedule weighs rows at t [B] with in training.

        None (the default) for all alike. Losses multiply by it as by any weight of a row.
        """
        return None

    def snr_table(self) -> Tensor | None:
        """Return the SNR of every timestep that `draw` can give, [T] float32 on the CPU.

        A loss normalises its timestep weights with it. None (the default) for flow models, and
        where timesteps are not drawn with equal probability.
        """
        return None

    @abstractmethod
    def solver_config(self, size: tuple[int, int], steps: int) -> dict[str, Any]:
        """Return the `scheduler_config.json` sampling should use.

        One truth for the prior, previews and the exported model. Some families shift by the size
        (height, width in pixels) or the number of sampling steps.
        """


class Scheduler(Component):
    """A noise scheduler. Hook: `register_schedulers`."""

    def open(self, info: ModelInfo) -> NoiseSchedule:
        """Build the schedule for a model (`info.schedule`, `info.prediction`)."""
        raise NotImplementedError  # abstract

    def has_snr(self) -> bool:
        """Say whether `NoiseSchedule.snr` gives values (False for flow matching)."""
        return True
