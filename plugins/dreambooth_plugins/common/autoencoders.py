"""The space latents are trained in: how an autoencoder's output comes into it and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch.nn import functional

from dreambooth.interfaces import Latents

if TYPE_CHECKING:
    from torch import Tensor


class Codec(Protocol):
    """From pixels to the space the denoiser trains in, and back, through an autoencoder."""

    def encode(self, vae: Any, pixels: Tensor) -> Latents:
        """Encode float32 pixels [B, 3, H, W] in [-1, 1]."""

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode float32 latents [B, C, h, w] to pixels [B, 3, H, W]."""


@dataclass(frozen=True)
class KL:
    """Latents of an AutoencoderKL, less its `shift_factor` and times its `scaling_factor`."""

    sampled: bool = True
    """Whether training draws from the posterior, or takes its mean."""

    def encode(self, vae: Any, pixels: Tensor) -> Latents:
        """Return mean and deviation of the posterior, both scaled."""
        posterior = vae.encode(pixels).latent_dist
        shift, scale = _shift_and_scale(vae)
        std = posterior.std * scale if self.sampled else None
        return Latents((posterior.mean - shift) * scale, std)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels that are not yet clamped."""
        shift, scale = _shift_and_scale(vae)
        pixels: Tensor = vae.decode(latents / scale + shift).sample
        return pixels


class BatchNormPatches:
    """Means of an AutoencoderKLFlux2 in patches of 2 x 2 cells, brought to the mean and deviation
    its batch norm has seen."""

    def encode(self, vae: Any, pixels: Tensor) -> Latents:
        """Return the posterior's means [B, 4 C, h / 2, w / 2]."""
        mean, std = seen(vae)
        patches = functional.pixel_unshuffle(vae.encode(pixels).latent_dist.mean, 2)
        return Latents((patches - mean) / std, None)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels that are not yet clamped."""
        mean, std = seen(vae)
        pixels: Tensor = vae.decode(functional.pixel_shuffle(latents * std + mean, 2)).sample
        return pixels


class PerChannel:
    """Latents of a video autoencoder's single frames, brought to mean 0 and deviation 1 a channel
    by its `latents_mean` and `latents_std`."""

    def encode(self, vae: Any, pixels: Tensor) -> Latents:
        """Return mean and deviation of the posterior, both scaled."""
        posterior = vae.encode(pixels.unsqueeze(2)).latent_dist
        mean, std = _per_channel(vae, pixels)
        return Latents((posterior.mean.squeeze(2) - mean) / std, posterior.std.squeeze(2) / std)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels that are not yet clamped."""
        mean, std = _per_channel(vae, latents)
        pixels: Tensor = vae.decode((latents * std + mean).unsqueeze(2)).sample
        return pixels[:, :, 0]


class Deterministic:
    """Latents without a distribution, times the autoencoder's `scaling_factor` (AutoencoderDC)."""

    def encode(self, vae: Any, pixels: Tensor) -> Latents:
        """Return latents alone."""
        return Latents(vae.encode(pixels).latent * vae.config.scaling_factor, None)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels that are not yet clamped."""
        pixels: Tensor = vae.decode(latents / vae.config.scaling_factor).sample
        return pixels


def seen(vae: Any) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [1, 4 C, 1, 1] of patches, as the batch norm has seen them."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    return mean, (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()


def _per_channel(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    both = (like.new_tensor(vae.config[name]) for name in ("latents_mean", "latents_std"))
    mean, std = (values.view(1, -1, 1, 1) for values in both)
    return mean, std


def _shift_and_scale(vae: Any) -> tuple[float, float]:
    return getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor
