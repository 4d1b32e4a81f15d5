"""Tables and formulas of the discrete variance-preserving schedule.

z_t = alpha_t z + sigma_t eps with alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t);
v = alpha_t eps - sigma_t z (Salimans & Ho 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dreambooth.interfaces import Draw, NoiseSchedule
from dreambooth_plugins.common.libraries import diffusers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dreambooth.interfaces import Prediction

TABLE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")

ZERO_SNR_SOLVERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers of diffusers that know `rescale_betas_zero_snr`; others would ignore it unheard."""


def alphas_cumprod(schedule: Mapping[str, Any], zero_terminal_snr: bool) -> Tensor:
    """Return abar [T], float32, by diffusers' own recipe: the solvers sample on the same bits.

    With zero terminal SNR (Lin et al. 2023, algorithm 1) s = sqrt(abar) becomes
    (s - s_T) s_0 / (s_0 - s_T), so the last entry is exactly 0.
    """
    table = diffusers.DDPMScheduler(
        **{key: schedule[key] for key in TABLE_KEYS}, rescale_betas_zero_snr=zero_terminal_snr
    )
    abar: Tensor = table.alphas_cumprod
    return abar


class DiscreteSchedule(NoiseSchedule):
    """T training timesteps of a variance-preserving schedule, for epsilon or v models.

    `schedule` is a complete `scheduler_config.json` (every key of `TABLE_KEYS`).
    """

    def __init__(
        self,
        schedule: Mapping[str, Any],
        *,
        prediction: Prediction,
        timestep_range: tuple[int, int] | None = None,
        offset_noise: float = 0.0,
        zero_terminal_snr: bool = False,
    ) -> None:
        self.schedule = dict(schedule)
        self.prediction = prediction
        self.offset_noise = offset_noise
        self.zero_terminal_snr = zero_terminal_snr
        self.alphas_cumprod = alphas_cumprod(schedule, zero_terminal_snr)
        """abar, [T], float32, on the CPU."""
        self.low, self.high = timestep_range or (0, len(self.alphas_cumprod))
        abar = self.alphas_cumprod
        self._snr = (abar.double() / (1.0 - abar.double())).float()
        self._tables = {torch.device("cpu"): (abar.sqrt(), (1.0 - abar).sqrt(), self._snr)}

    def draw(self, shape: tuple[int, int, int], rngs: Sequence[torch.Generator]) -> Draw:
        """Draw row i from `rngs[i]`: timestep, then noise, then the offset (where there is one).

        t is int64 [B], the noise float32 [B, *shape]; both on the CPU.
        """
        rows = [self._row(shape, rng) for rng in rngs]
        return Draw(torch.cat([t for t, _ in rows]), torch.stack([noise for _, noise in rows]))

    def _row(self, shape: tuple[int, int, int], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        t = torch.randint(self.low, self.high, (1,), generator=rng)
        noise = torch.randn(shape, generator=rng)
        if self.offset_noise:
            noise += self.offset_noise * torch.randn((shape[0], 1, 1), generator=rng)
        return t, noise

    def timestep_quantiles(
        self, count: int, rng: torch.Generator, size: tuple[int, int] = (1, 1)
    ) -> Tensor:
        """Return low + floor((i + 1/2) (high - low) / count), int64 [count]; nothing is drawn."""
        places = torch.arange(count)
        return self.low + (2 * places + 1) * (self.high - self.low) // (2 * count)

    def add_noise(self, z: Tensor, draw: Draw) -> Tensor:
        """Return alpha_t z + sigma_t eps, float32."""
        alpha, sigma = self._at(draw.t, z)
        return alpha * z + sigma * draw.noise.to(z.device)

    def target(self, z: Tensor, draw: Draw) -> Tensor:
        """Return epsilon, or v = alpha_t eps - sigma_t z, float32."""
        noise = draw.noise.to(z.device)
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = self._at(draw.t, z)
        return alpha * noise - sigma * z

    def to_x0(self, pred: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """Return (z_t - sigma_t eps) / alpha_t, or alpha_t z_t - sigma_t v, float32.

        The v form is finite at pure noise, where alpha_t is 0.
        """
        alpha, sigma = self._at(t, z_t)
        if self.prediction == "epsilon":
            return (z_t - sigma * pred) / alpha
        return alpha * z_t - sigma * pred

    def snr(self, t: Tensor) -> Tensor:
        """Return abar_t / (1 - abar_t), float32 [B]; 0 at the end of a zero-terminal schedule."""
        return self._on(t.device)[2][t]

    def snr_table(self) -> Tensor:
        """Return the SNR of the timesteps in the range that is trained on."""
        return self._snr[self.low : self.high]

    def solver_config(self, size: tuple[int, int], steps: int) -> dict[str, Any]:
        """Return the model's own scheduler configuration, completed; see `NoiseSchedule`.

        The betas are written out, so that any solver class samples on the table of training.
        Latents are never clipped, and the last step of DDIM and PNDM ends where Stable Diffusion
        was trained to end (abar_0, not 1; timesteps start at 1), unless the model says otherwise.
        """
        config = {
            "skip_prk_steps": True,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            **self.schedule,
            "clip_sample": False,
            "prediction_type": self.prediction,
        }
        # A pipeline is saved with its scheduler's name; every solver reads the same table.
        config.setdefault("_class_name", "DDIMScheduler")
        if self.zero_terminal_snr:
            config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
            if config.get("_class_name") not in ZERO_SNR_SOLVERS:
                config["_class_name"] = "DDIMScheduler"
        return config

    def _at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, _ = self._on(like.device)
        rows = t.to(like.device)
        return alpha[rows][:, None, None, None], sigma[rows][:, None, None, None]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return alpha, sigma and SNR [T] on a device; copied there once."""
        if device not in self._tables:
            alpha, sigma, snr = self._tables[torch.device("cpu")]
            self._tables[device] = alpha.to(device), sigma.to(device), snr.to(device)
        return self._tables[device]
