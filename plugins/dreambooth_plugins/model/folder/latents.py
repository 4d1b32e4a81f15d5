"""The space latents are trained in: how an autoencoder's output comes into it and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from dreambooth.interfaces import Latents

if TYPE_CHECKING:
    from torch import Tensor


class Codec(Protocol):
    """From pixels to the space the denoiser trains in, and back, through an autoencoder."""

    def encode(self, vae: Any, pixels: Tensor) -> Latents:
        """Encode float32 pixels [B, 3, H, W] in [-1, 1]."""

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode float32 latents [B, C, h, w] to pixels [B, 3, H, W]."""


class KL:
    """Latents of an AutoencoderKL, less its `shift_factor` and times its `scaling_factor`."""

    def encode(self, vae: Any, pixels: Tensor) -> Latents:
        """Return mean and deviation of the posterior, both scaled."""
        posterior = vae.encode(pixels).latent_dist
        shift, scale = _shift_and_scale(vae)
        return Latents((posterior.mean - shift) * scale, posterior.std * scale)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels that are not yet clamped."""
        shift, scale = _shift_and_scale(vae)
        pixels: Tensor = vae.decode(latents / scale + shift).sample
        return pixels


def _shift_and_scale(vae: Any) -> tuple[float, float]:
    return getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor
