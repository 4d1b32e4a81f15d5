"""What a live model answers, by its contract alone: to compare with what a pipeline makes of files.

torch and diffusers are imported when something is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.helpers.flow import renormalised, set_steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.component.model_info import ModelInfo
    from dreambooth.interfaces import LoadedModel, RowGeometry


def times_at(info: ModelInfo, shares: Sequence[float]) -> Tensor:
    """Return the timesteps [n] at shares of the schedule, as `denoise` takes them."""
    import torch

    if info.prediction == "flow":
        return torch.tensor(shares, dtype=torch.float32)
    total = info.schedule.get("num_train_timesteps", 1000)
    return torch.tensor([int(share * total) for share in shares])


def solver_of(info: ModelInfo) -> Any:
    """Return the diffusers scheduler both sides draw with: DDIM, or Euler for flows."""
    import diffusers

    schedule = dict(info.schedule)
    if info.prediction == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config(schedule)
    return diffusers.DDIMScheduler.from_config(schedule, clip_sample=False)


def drawn(
    model: LoadedModel,
    prompt: str,
    negative: str,
    latents: Tensor,
    steps: int,
    guidance: float,
    row: RowGeometry,
) -> Tensor:
    """Return the latents [1, C, h, w] that `denoise` leads to from noise of that shape.

    Step by step as `LoadedModel.draw` has the pipeline do it, guided the family's way: classifier
    free from the negative prompt, by a number as an input, or not at all.
    """
    import torch

    info, solver, z = model.info, solver_of(model.info), latents
    if info.prediction == "flow":
        set_steps(solver, info, (z.shape[-2], z.shape[-1]), steps)
    else:
        solver.set_timesteps(steps)
    prompts = [negative, prompt] if info.guidance == "cfg" else [prompt]
    given = {"guidance": guidance} if info.guidance == "embedded" else {}
    encoded = model.collate(model.encode_prompts(prompts))
    cond = model.condition(encoded, [row] * len(prompts), **given)
    for i, step in enumerate(solver.timesteps):
        t = solver.sigmas[i] if info.prediction == "flow" else step
        at = t.to(z.device).expand(len(prompts))
        halves = model.denoise(torch.cat([z] * len(prompts)), at, cond).chunk(len(prompts))
        guided = halves[0]
        if len(prompts) > 1:
            guided = halves[0] + guidance * (halves[1] - halves[0])
            if info.flow is not None and info.flow.renormalised:
                guided = renormalised(guided, halves[1], info.latent.patch)
        z = solver.step(guided, step, z).prev_sample
    return z
