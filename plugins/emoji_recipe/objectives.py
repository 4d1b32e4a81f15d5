"""What the denoiser predicts: noise, v or velocity; how rows are noised, and how it is solved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Noised:
    """Noised rows: what goes in, what should come out, and how much each row counts."""

    z_t: Tensor
    """[B, C, H, W]."""
    t: Tensor
    """[B], as the network is told it: 0..999, or 0..1000 for flows."""
    target: Tensor
    weight: Tensor
    """[B]."""


def stratified(batch: int, draw: torch.Generator) -> Tensor:
    """Return one uniform draw in each of `batch` equal parts of 0..1: [batch], less variance."""
    return (torch.arange(batch) + torch.rand(batch, generator=draw)) / batch


class Diffusion:
    """Stable Diffusion's schedule; predicts the noise or v (Salimans and Ho, 2022)."""

    def __init__(self, prediction: str, gamma: float) -> None:
        self.prediction = prediction
        self.scheduler = self.solver()
        alphas = self.scheduler.alphas_cumprod
        self.weights = min_snr_weight(alphas, gamma, prediction)

    def solver(self) -> Any:
        """Return the scheduler that samples, and that a loader of the pipeline finds: DDIM."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=self.prediction,
        )

    def noised(self, z: Tensor, noise: Tensor, draw: torch.Generator) -> Noised:
        """Return the rows at stratified uniform timesteps, with min-SNR weights."""
        count = len(self.weights)
        t = (stratified(len(z), draw) * count).long().clamp(max=count - 1)
        z_t = self.scheduler.add_noise(z, noise, t)
        if self.prediction == "epsilon":
            return Noised(z_t, t, noise, self.weights[t])
        return Noised(z_t, t, self.scheduler.get_velocity(z, noise, t), self.weights[t])


class Flow:
    """Rectified flow: z_t = (1 - s) z + s noise, velocity noise - z (Esser et al., 2024)."""

    def solver(self) -> Any:
        """Return the scheduler that samples: Euler steps over even sigmas."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler()

    def noised(self, z: Tensor, noise: Tensor, draw: torch.Generator) -> Noised:
        """Return the rows at stratified logit-normal times (location 0, scale 1)."""
        even = stratified(len(z), draw).clamp(1e-4, 1 - 1e-4)
        s = torch.special.ndtri(even).sigmoid()
        share = s[:, None, None, None]
        z_t = (1 - share) * z + share * noise
        return Noised(z_t, s * 1000, noise - z, torch.ones_like(s))


def objective(name: str, gamma: float) -> Diffusion | Flow:
    """Return the objective `epsilon`, `v_prediction` or `flow`."""
    return Flow() if name == "flow" else Diffusion(name, gamma)


def min_snr_weight(alphas_cumprod: Tensor, gamma: float, prediction: str = "epsilon") -> Tensor:
    """Return min(SNR, gamma) / SNR for every timestep (Hang et al., 2023); / (SNR + 1) for v."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


@torch.no_grad()
def sample(
    predict: Any, solver: Any, noise: Tensor, cond: Tensor, empty: Tensor, steps: int, scale: float
) -> Tensor:
    """Return latents [B, C, H, W] drawn from noise with classifier-free guidance.

    `predict(z, t [B], cond)` is the network; `cond` and `empty` are [B, L, D]; both halves of the
    guidance go through it together.
    """
    solver.set_timesteps(steps)
    both = torch.cat([empty, cond])
    z = noise
    for t in solver.timesteps:
        out = predict(torch.cat([z, z]), t.to(z.device).expand(2 * len(z)), both)
        plain, guided = out.float().chunk(2)
        z = solver.step(plain + scale * (guided - plain), t, z).prev_sample
    return z
