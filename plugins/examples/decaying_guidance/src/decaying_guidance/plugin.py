"""Guidance that decays: strong while the picture is laid out, none while it is finished."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from dreambooth import Sampler, hookimpl
from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dreambooth.interfaces import Conditioning, Context, LoadedModel, Progress
    from torch import Tensor


class DecayingGuidance(Sampler):
    """DDIM whose guidance scale falls along half a cosine, from `guidance_scale` to `last_scale`.

    Where the scale has come down to 1 a step takes one forward instead of two.
    """

    kind: Literal["decaying_guidance"] = "decaying_guidance"
    steps: int = Field(default=30, ge=1)
    """Sampling steps."""
    guidance_scale: float = Field(default=7.5, ge=1.0)
    """Scale of the first step."""
    last_scale: float = Field(default=1.0, ge=1.0)
    """Scale of the last step."""
    negative: str = ""
    """What should not be seen, while there is guidance."""

    def scale(self, step: int) -> float:
        """Return the guidance scale of a step, counted from 0."""
        done = step / max(1, self.steps - 1)
        share = (1 + math.cos(math.pi * done)) / 2
        return self.last_scale + (self.guidance_scale - self.last_scale) * share

    def sampling_steps(self) -> int:
        """Return the number of sampling steps."""
        return self.steps

    def forwards(self, solver_config: Mapping[str, Any] | None = None) -> float:
        """Return the denoiser rows of a picture: two a step, one where there is no guidance."""
        return float(sum(2 if self.scale(k) > 1.0 else 1 for k in range(self.steps)))

    def extra_prompts(self) -> list[str]:
        """Return the negative prompt, which is encoded beforehand."""
        return [self.negative]

    def sample(
        self,
        model: LoadedModel,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        size: tuple[int, int],
        solver_config: Mapping[str, Any],
        ctx: Context,
        negative: str | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Return latents, each picture from a generator of its own."""
        import torch
        from diffusers import DDIMScheduler

        solver = DDIMScheduler.from_config(dict(solver_config))
        solver.set_timesteps(self.steps)
        without = self.negative if negative is None else negative
        both = conditioned(model, [*prompts, *[without] * len(prompts)], size)
        alone = conditioned(model, list(prompts), size)
        latent = model.info.latent
        shape = (latent.channels, size[0] // latent.factor, size[1] // latent.factor)
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        z = torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(ctx.device)
        for step, t in enumerate(solver.timesteps):
            scale = self.scale(step)
            guided = scale > 1.0
            given = torch.cat([z, z]) if guided else z
            with ctx.autocast():
                times = t.expand(len(given)).to(z.device)
                pred = model.denoise(given, times, both if guided else alone).float()
            if guided:
                wanted, unwanted = pred.chunk(2)
                pred = unwanted + scale * (wanted - unwanted)
            z = solver.step(pred, t, z).prev_sample
            if progress is not None:
                progress.advance()
        return z


def conditioned(model: LoadedModel, prompts: list[str], size: tuple[int, int]) -> Conditioning:
    """Return the conditioning of a batch of prompts."""
    from dreambooth.interfaces import RowGeometry

    cond = model.collate(model.conditionings(prompts))
    return model.condition(cond, [RowGeometry(size, (0, 0), size)] * len(prompts))


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    """Bring the sampler."""
    return [DecayingGuidance]
