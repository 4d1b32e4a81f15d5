"""Sampling along a predicted velocity v = noise - x0, from s = 1 to s = 0."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.errors import RunError
from dreambooth.helpers.flow import renormalised, set_steps
from dreambooth.interfaces import RowGeometry
from dreambooth_plugins.common.libraries import diffusers
from dreambooth_plugins.sampler.guidance import guide, require_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dreambooth.interfaces import Conditioning, Context, LoadedModel, ModelInfo
    from dreambooth.interfaces.context import Progress
    from dreambooth_plugins.sampler.flow_guidance import FlowGuidance, SolverName

TINY = 1e-12


def times(
    info: ModelInfo, solver_config: Mapping[str, Any], size: tuple[int, int], steps: int
) -> list[float]:
    """Return the times of a picture with latents of `size` (h, w): steps + 1, from noise to 0.

    diffusers' own scheduler makes them of the model's configuration, as the pipeline has it do.
    """
    solver = diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(solver_config))
    set_steps(solver, info, size, steps)
    return [float(s) for s in solver.sigmas]


def zero_star(v_uncond: Tensor, v_cond: Tensor) -> Tensor:
    """Return v_u times <v_c, v_u> / |v_u|^2, a factor a row, of two [B, ...] tensors
    (CFG-Zero*, Fan et al. 2025, arXiv:2503.18886)."""
    u, c = v_uncond.flatten(1), v_cond.flatten(1)
    factor = (c * u).sum(1) / (u.square().sum(1) + TINY)
    return v_uncond * factor.view(-1, *[1] * (v_uncond.ndim - 1))


class DPM2M:
    """Second order from the last two predictions: DPM-Solver++(2M) (Lu et al. 2022) on a flow.

    With alpha = 1 - s and lambda = log(alpha / s) a step from s to r is
    z_r = (r / s) z_s + (alpha_r - r alpha_s / s) D, where D is x0 carried on to the middle of the
    step by what it changed in the last one. The first and the last step are of first order.
    """

    def __init__(self) -> None:
        self._last: tuple[float, Tensor] | None = None

    def __call__(self, z: Tensor, v: Tensor, s: float, r: float) -> Tensor:
        """Return z at time r < s, from z and the velocity v at time s."""
        x0 = z - s * v
        d = x0
        if self._last is not None and r > 0.0:
            before, last = self._last
            h = _log_ratio(r) - _log_ratio(s)
            ratio = (_log_ratio(s) - _log_ratio(before)) / h
            d = x0 + (x0 - last) / (2.0 * ratio) if math.isfinite(ratio) else x0
        self._last = (s, x0)
        return (r / s) * z + ((1.0 - r) - r * (1.0 - s) / s) * d


def euler(z: Tensor, v: Tensor, s: float, r: float) -> Tensor:
    """Return z at time r < s, from z and the velocity v at time s."""
    return z + (r - s) * v


def _log_ratio(s: float) -> float:
    return math.log((1.0 - s) / s) if s < 1.0 else -math.inf


def sample(
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    guidance: FlowGuidance,
    solver: SolverName,
    steps: int,
    seeds: Sequence[int],
    size: tuple[int, int],
    solver_config: Mapping[str, Any],
    ctx: Context,
    negative: str,
    progress: Progress | None,
) -> Tensor:
    """Return latents [B, C, h, w]; the body of `flow`'s `sample`."""
    require_size(model.info, size)
    spec = model.info.latent
    cells = (size[0] // spec.factor, size[1] // spec.factor)
    shape = (1, spec.channels, *cells)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    take = DPM2M() if solver == "dpmpp_2m" else euler
    with torch.no_grad():
        table = times(model.info, solver_config, cells, steps)
        predict = _Velocity(guidance, model, prompts, negative=negative, size=size, ctx=ctx)
        latents = torch.cat(noise).to(ctx.device)
        for i in range(steps):
            s, r = table[i], table[i + 1]
            if not guidance.still(i, steps):
                latents = take(latents, predict(latents, s), s, r)
            if progress is not None:
                progress.advance()
    if not torch.isfinite(latents).all():
        raise RunError(
            f"sampling gave numbers that are not finite ({solver}, {steps} steps)",
            "the weights may have diverged: lower the learning rate, or try precision: fp32 "
            "(these families overflow in fp16)",
        )
    return latents


class _Velocity:
    """The guided network: both halves, [unconditional; conditional], in one forward."""

    def __init__(
        self,
        guidance: FlowGuidance,
        model: LoadedModel,
        prompts: Sequence[str],
        *,
        negative: str,
        size: tuple[int, int],
        ctx: Context,
    ) -> None:
        self.guidance, self.model, self.ctx = guidance, model, ctx
        two = guidance.scale != 1.0
        distinct = list(dict.fromkeys([*([negative] if two else []), *prompts]))
        with ctx.autocast():
            encoded = dict(zip(distinct, model.conditionings(distinct), strict=True))
        geometry = RowGeometry(size, (0, 0), size)
        # Families without such an input need not know the argument.
        given = {} if guidance.embedded is None else {"guidance": guidance.embedded}

        def rows(row_prompts: Sequence[str]) -> Conditioning:
            batch = model.collate([encoded[prompt] for prompt in row_prompts])
            return model.condition(batch, [geometry] * len(row_prompts), **given)

        self.one = rows(prompts)
        self.both = rows([*[negative] * len(prompts), *prompts]) if two else self.one

    def __call__(self, z: Tensor, s: float) -> Tensor:
        """Return the velocity for latents [B, C, h, w] at time s."""
        if not self.guidance.at(s):
            return self._denoise(z, s, self.one)
        v_uncond, v_cond = self._denoise(torch.cat([z, z]), s, self.both).chunk(2)
        if self.guidance.zero_star:
            v_uncond = zero_star(v_uncond, v_cond)
        guided = guide(v_uncond, v_cond, self.guidance.scale, self.guidance.rescale)
        if self.guidance.renormalised:
            guided = renormalised(guided, v_cond, self.model.info.latent.patch)
        return guided

    def _denoise(self, z: Tensor, s: float, cond: Conditioning) -> Tensor:
        t = torch.full((len(z),), s, device=z.device)
        with self.ctx.autocast():
            return self.model.denoise(z, t, cond).float()
