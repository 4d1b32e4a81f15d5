"""Sampling with classifier-free guidance."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.errors import JobError, RunError
from dreambooth.interfaces import RowGeometry
from dreambooth_plugins.common.libraries import diffusers
from dreambooth_plugins.sampler.steps import SCHEDULE_KEYS, SOLVERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dreambooth.interfaces import Conditioning, Context, LoadedModel, ModelInfo
    from dreambooth.interfaces.context import Progress
    from dreambooth_plugins.sampler.steps import Guidance, SolverName


def guide(e_uncond: Tensor, e_cond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Return the guided prediction e_u + s (e_c - e_u) of two [B, ...] tensors.

    With `rescale` = phi (Lin et al. 2023, section 3.4) x becomes
    phi x std(e_c) / std(x) + (1 - phi) x, std over all but the batch.
    """
    guided = e_uncond + scale * (e_cond - e_uncond)
    if not rescale:
        return guided
    axes = tuple(range(1, guided.ndim))
    spread = guided.std(axes, keepdim=True).clamp_min(torch.finfo(guided.dtype).tiny)
    rescaled = guided * (e_cond.std(axes, keepdim=True) / spread)
    return rescale * rescaled + (1.0 - rescale) * guided


def require_size(info: ModelInfo, size: tuple[int, int]) -> None:
    """Raise `JobError` where a model draws no pictures of `size` (height, width)."""
    multiple = info.latent.multiple
    if any(side % multiple for side in size):
        raise JobError(
            f"pictures of {size[0]} x {size[1]} pixels cannot be drawn by this model",
            f"height and width must be multiples of {multiple}",
        )


def build_solver(name: SolverName, solver_config: Mapping[str, Any]) -> Any:
    """Build the diffusers scheduler that takes the steps, on the model's schedule.

    Of the configuration, what says how another solver takes its steps is left out
    (`SCHEDULE_KEYS`), and so are keys that the class does not have, as diffusers' own
    `from_config` does; `JobError` where that would drop a zero-terminal-SNR rescale.
    """
    solver = SOLVERS[name]
    if solver_config.get("rescale_betas_zero_snr") and not solver.zero_snr:
        raise JobError(
            f"sampler.solver: {name} cannot sample a zero-terminal-SNR schedule",
            "use dpmpp_2m_karras, unipc, euler or ddim",
        )
    cls: Any = getattr(diffusers, solver.class_name)
    known = SCHEDULE_KEYS & cls._get_init_keys(cls)
    config = {key: value for key, value in solver_config.items() if key in known}
    return cls(**{**config, **solver.options})


def evaluations(name: SolverName, count: int, solver_config: Mapping[str, Any]) -> list[float]:
    """Return sigma = sqrt((1 - abar) / abar) at each evaluation of the network.

    Asked of the solver that would take the `count` steps: PNDM evaluates once more.
    """
    solver = build_solver(name, solver_config)
    solver.set_timesteps(count)
    return _sigmas(solver)


def sample(
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    guidance: Guidance,
    solver: SolverName,
    steps: int,
    seeds: Sequence[int],
    size: tuple[int, int],
    solver_config: Mapping[str, Any],
    ctx: Context,
    negative: str,
    progress: Progress | None,
) -> Tensor:
    """Return latents [B, C, h, w]; the body of `cfg`'s `sample`."""
    require_size(model.info, size)
    built = build_solver(solver, solver_config)
    # On the host, where the solver looks them up in its tables: nothing is read back for it.
    built.set_timesteps(steps)
    if hasattr(built, "set_begin_index"):
        # Left to look for its start, a solver whose first timesteps round to one number (Karras
        # sigmas on a zero-terminal-SNR schedule) takes the second and runs off the end.
        built.set_begin_index(0)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with torch.no_grad():
        predict = _Predictor(guidance, model, prompts, negative=negative, size=size, ctx=ctx)
        latents = _initial(model, size, generators).to(ctx.device) * built.init_noise_sigma
        latents = _solve(built, steps, predict, latents, generators=generators, progress=progress)
    if not torch.isfinite(latents).all():
        raise RunError(
            f"sampling gave numbers that are not finite ({solver}, {steps} steps)",
            "the weights may have diverged: lower the learning rate, or try precision: fp32",
        )
    return latents


def _initial(
    model: LoadedModel, size: tuple[int, int], generators: Sequence[torch.Generator]
) -> Tensor:
    spec = model.info.latent
    shape = (1, spec.channels, size[0] // spec.factor, size[1] // spec.factor)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


def _solve(
    solver: Any,
    steps: int,
    predict: _Predictor,
    latents: Tensor,
    *,
    generators: list[torch.Generator],
    progress: Progress | None,
) -> Tensor:
    # Solvers that draw noise draw each image's from its own generator; others take none.
    draws = {"generator": generators} if "generator" in signature(solver.step).parameters else {}
    sigmas, on_device = _sigmas(solver), solver.timesteps.to(latents.device)
    for i, t in enumerate(solver.timesteps):
        noisy = solver.scale_model_input(latents, t)
        prediction = predict(noisy, on_device[i], predict.guidance.at(sigmas[i]))
        latents = solver.step(prediction, t, latents, **draws, return_dict=False)[0]
        # PNDM evaluates once more than it has steps.
        if progress is not None and i >= len(solver.timesteps) - steps:
            progress.advance()
    return latents


def _sigmas(solver: Any) -> list[float]:
    if hasattr(solver, "sigmas"):
        return list(map(float, solver.sigmas[: len(solver.timesteps)]))
    abar = solver.alphas_cumprod.double()[solver.timesteps.long()]
    return list(map(float, ((1.0 - abar) / abar).sqrt()))


class _Predictor:
    """The guided network: both halves, [unconditional; conditional], in one forward."""

    def __init__(
        self,
        guidance: Guidance,
        model: LoadedModel,
        prompts: Sequence[str],
        *,
        negative: str,
        size: tuple[int, int],
        ctx: Context,
    ) -> None:
        self.guidance, self.model, self.ctx = guidance, model, ctx
        self.can_guide = model.info.guidance == "cfg" and guidance.scale != 1.0
        count = len(prompts)
        distinct = list(dict.fromkeys([*([negative] if self.can_guide else []), *prompts]))
        with ctx.autocast():
            encoded = dict(zip(distinct, model.conditionings(distinct), strict=True))
        geometry = RowGeometry(size, (0, 0), size)

        def rows(row_prompts: Sequence[str]) -> Conditioning:
            batch = model.collate([encoded[prompt] for prompt in row_prompts])
            return model.condition(batch, [geometry] * len(row_prompts))

        self.one = rows(prompts)
        self.both = rows([*[negative] * count, *prompts]) if self.can_guide else self.one

    def __call__(self, noisy: Tensor, t: Tensor, guided: bool) -> Tensor:
        """Return the prediction for noisy latents [B, C, h, w] at timestep t (a scalar)."""
        if not (guided and self.can_guide):
            return self._denoise(noisy, t, self.one)
        e_uncond, e_cond = self._denoise(torch.cat([noisy, noisy]), t, self.both).chunk(2)
        return guide(e_uncond, e_cond, self.guidance.scale, self.guidance.rescale)

    def _denoise(self, noisy: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        with self.ctx.autocast():
            return self.model.denoise(noisy, t.expand(len(noisy)), cond).float()
