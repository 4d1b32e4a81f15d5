from __future__ import annotations

from typing import Literal

from pydantic import Field

from dreambooth import Sampler, hookimpl


class Unguided(Sampler):
    """DDIM without guidance: one forward a step."""

    kind: Literal["unguided"] = "unguided"
    steps: int = Field(default=30, ge=1)
    """Sampling steps."""

    def sampling_steps(self):
        return self.steps

    def forwards(self):
        return float(self.steps)

    def sample(
        self, model, prompts, *, seeds, size, solver_config, ctx, negative=None, progress=None
    ):
        import torch
        from diffusers import DDIMScheduler

        from dreambooth.interfaces import RowGeometry

        solver = DDIMScheduler.from_config(dict(solver_config))
        solver.set_timesteps(self.steps)
        latent = model.info.latent
        shape = (latent.channels, size[0] // latent.factor, size[1] // latent.factor)
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        z = torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(ctx.device)
        cond = model.collate(model.conditionings(prompts))
        cond = model.condition(cond, [RowGeometry(size, (0, 0), size)] * len(prompts))
        for t in solver.timesteps:
            with ctx.autocast():
                pred = model.denoise(z, t.expand(len(z)).to(z.device), cond)
            z = solver.step(pred.float(), t, z).prev_sample
            if progress is not None:
                progress.advance()
        return z


@hookimpl
def register_samplers():
    return [Unguided]
