"""Times of flow-matching models: how a model's own schedule shifts them, and where steps lie.

z_s = (1 - s) x0 + s noise, with s from 0 (a picture) to 1 (noise). A shift by a > 0 moves times
towards noise, s -> a s / (1 + (a - 1) s) (Esser et al. 2024, arXiv:2403.03206, equation 23).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dreambooth.component.model_info import FlowSpec

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth.component.model_info import ModelInfo

LINE = {
    "base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15,
}  # fmt: skip
"""diffusers' values where a schedule that shifts by size leaves them out."""


def shift_of(info: ModelInfo, size: tuple[int, int], steps: int | None = None) -> float:
    """Return the model's own shift a for latents of `size` (h, w), sampled in `steps` steps.

    `steps` None is the family's usual number. A schedule shifts by one number (`shift`), or by the
    number of tokens (`use_dynamic_shifting`): a = exp(mu), or mu itself for a linear one.
    """
    if not info.schedule.get("use_dynamic_shifting"):
        return float(info.schedule.get("shift", 1.0))
    mu = mu_of(info, size, steps)
    return mu if info.schedule.get("time_shift_type") == "linear" else math.exp(mu)


def mu_of(info: ModelInfo, size: tuple[int, int], steps: int | None = None) -> float:
    """Return mu for latents of `size` (h, w): the family's rule, or the schedule's line."""
    flow = info.flow or FlowSpec()
    tokens = (size[0] // info.latent.patch) * (size[1] // info.latent.patch)
    if flow.mu is not None:
        return flow.mu(tokens, steps or flow.steps)
    few, many, low, high = (float(info.schedule.get(key, value)) for key, value in LINE.items())
    slope = (high - low) / (many - few)
    return slope * tokens + low - slope * few


def set_steps(solver: Any, info: ModelInfo, size: tuple[int, int], steps: int) -> None:
    """Set the steps of a diffusers flow-matching scheduler as the family's pipeline does.

    `size` is that of the latents, (h, w). `solver.sigmas` are then the times s, [steps + 1],
    descending to 0.
    """
    options: dict[str, Any] = {"num_inference_steps": steps}
    if (info.flow or FlowSpec()).begins == "one":
        options["sigmas"] = [1.0 - i / steps for i in range(steps)]
    if solver.config.get("use_dynamic_shifting"):
        options["mu"] = mu_of(info, size, steps)
    solver.set_timesteps(**options)
    solver.set_begin_index(0)


def renormalised(guided: Tensor, v_cond: Tensor, patch: int) -> Tensor:
    """Return `guided` [B, C, h, w] with each token's length that of the conditional prediction.

    A token is patch x patch cells of all channels.
    """
    b, c, h, w = guided.shape

    def lengths(v: Tensor) -> Tensor:
        cells = v.view(b, c, h // patch, patch, w // patch, patch)
        return cells.square().sum((1, 3, 5), keepdim=True).sqrt()

    cells = guided.view(b, c, h // patch, patch, w // patch, patch)
    return (cells * (lengths(v_cond) / lengths(guided))).view(b, c, h, w)
