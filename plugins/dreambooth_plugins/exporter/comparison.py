"""Does a file draw what the live model draws? Text embeddings, predictions and drawn latents."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from dreambooth.helpers.live import drawn, solver_of, times_at
from dreambooth.interfaces import Check, RowGeometry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from dreambooth.interfaces import Artifact, Conditioning, Context, LoadedModel

PROMPT = "a photo of {} dog"
"""What is encoded and drawn: with the learned word, where there is one."""
TIMESTEPS = (0.05, 0.5, 0.95)
"""Where predictions are compared, as shares of the schedule."""
STEPS, GUIDANCE = 8, 7.5
"""How the compared latents are drawn (DDIM, or Euler for flows)."""
MAX_SIDE = 32
"""Latent cells a side, so that the check of a large model takes seconds."""
LOOSE = 0.25
"""Bound on text and predictions of a file in half precision: enough to see a wrong one. Drawn
latents are only reported then."""

Base = Literal["held", "source"]
"""Which values frozen weights have in a comparison, where the run holds them in half precision:
those that were trained against, or the source's own, which files of whole models hold."""


@dataclass(frozen=True)
class Tolerance:
    """Largest differences of float32 outputs, in standard deviations of the output."""

    outputs: float = 1e-5
    """Of text embeddings and predictions."""
    latents: float = 1e-4
    """Of latents after `STEPS` guided steps."""


SAME_WEIGHTS = Tolerance()
FOLDED = Tolerance(latents=1e-3)
"""Where the file has the same function in other weights: an adapter folded into the base."""


def tolerance_for(artifact: Artifact) -> Tolerance:
    """Return the tolerance of a whole model's files."""
    return FOLDED if artifact.kind == "adapter" else SAME_WEIGHTS


@dataclass(frozen=True)
class Outputs:
    """What a model answers to fixed inputs, float32."""

    text: Mapping[str, Tensor]
    """What the denoiser is conditioned on, by name, [3, ...] or [1, ...]."""
    denoiser: Tensor
    """[3, C, h, w], predictions at `TIMESTEPS`."""
    latents: Tensor
    """[1, C, h, w], drawn for the prompt."""


def inputs(model: LoadedModel) -> tuple[Tensor, Tensor]:
    """Return fixed noise [3, C, h, w] and timesteps [3]."""
    spec = model.info.latent
    step = spec.multiple // spec.factor
    side = max(step, min(model.info.resolution // spec.factor, MAX_SIDE) // step * step)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(TIMESTEPS), spec.channels, side, side, generator=generator)
    return latents, times_at(model.info, TIMESTEPS)


def rows(model: LoadedModel, latents: Tensor) -> list[RowGeometry]:
    """Return a geometry a row of latents: of pictures made at that size, then cropped ones."""
    height, width = (side * model.info.latent.factor for side in latents.shape[-2:])
    first = RowGeometry((height, width), (0, 0), (height, width))
    cropped = RowGeometry((2 * height, 3 * width), (height // 2, width // 4), (height, width))
    return [first, *[cropped] * (len(latents) - 1)]


def prompt_of(model: LoadedModel) -> str:
    """Return the prompt that is compared."""
    return PROMPT.format(" ".join(model.words) or "a")


@torch.no_grad()
def live_outputs(
    model: LoadedModel, tensors: Mapping[str, Tensor], ctx: Context, base: Base = "held"
) -> Outputs:
    """Return the outputs of the live model with `tensors`, computed in float32 throughout."""
    latents, t = (tensor.to(ctx.device) for tensor in inputs(model))
    exactly = torch.autocast(ctx.device.type, enabled=False)
    with in_float32(model, base), weights_in_place(model, tensors), exactly:
        [prompt] = model.encode_prompts([prompt_of(model)])
        geometry = rows(model, latents)
        cond = model.condition(model.collate([prompt] * len(t)), geometry)
        predictions = model.denoise(latents, t, cond)
        z = drawn(model, prompt_of(model), "", latents[:1], STEPS, GUIDANCE, geometry[0])
    return Outputs(_once(cond), predictions, z)


@torch.no_grad()
def file_outputs(pipe: Any, model: LoadedModel, ctx: Context) -> Outputs:
    """Return the outputs of a diffusers pipeline, by its own calls.

    Parts that lie elsewhere come to the device one after the other, and go back.
    """
    latents, t = (tensor.to(ctx.device) for tensor in inputs(model))
    prompt = prompt_of(model)
    cond, predictions = model.answer(pipe, [prompt] * len(t), latents, t, rows(model, latents))
    z = model.draw(pipe, prompt, "", latents[:1], solver_of(model.info), STEPS, GUIDANCE)
    return Outputs(_once(cond), predictions, z)


def _once(cond: Conditioning) -> dict[str, Tensor]:
    """Return the rows of each tensor, one where all are alike: what depends on the prompt alone."""
    alike = {name: bool((t == t[:1]).all()) for name, t in cond.tensors.items()}
    return {name: t[:1] if alike[name] else t for name, t in cond.tensors.items()}


def verdict(
    here: Outputs, there: Outputs, *, exact: bool, tolerance: Tolerance, what: str, count: int
) -> Check:
    """Compare outputs; `what` begins the message and `count` is the number of equal tensors."""
    figures = {
        "text": max((apart(t, there.text[n]) for n, t in here.text.items()), default=0.0),
        "denoiser": apart(here.denoiser, there.denoiser),
        "latents": apart(here.latents, there.latents),
    }
    outputs, latents = (tolerance.outputs, tolerance.latents) if exact else (LOOSE, math.inf)
    limits = {"text": outputs, "denoiser": outputs, "latents": latents}
    # `not <=` is true of NaN as well; of infinity only where nothing is allowed to be it.
    bad = {n: v for n, v in limits.items() if not figures[n] <= v or math.isinf(figures[n])}
    limited = ", ".join(f"{name} {limit:.0e}" for name, limit in bad.items())
    return Check(
        not bad,
        f"{what}, prediction within {figures['denoiser']:.1e}, text within {figures['text']:.1e} "
        f"and drawn latents within {figures['latents']:.1e} of their deviation"
        + (f" (more than is allowed: {limited})" if bad else ""),
        {"tensors": count, "different": 0, **figures},
    )


@contextmanager
def in_float32(model: LoadedModel, base: Base) -> Iterator[None]:
    """Hold denoiser and text encoders in float32 for the block, then as they were.

    Rounding to half precision hides what a file does wrong, and there is none of it in what is
    written. Weights are widened one by one in place of the rounded ones, and rounded back to just
    these: the base is in memory once. Parts that were not in memory leave it again.
    """
    before = model.loaded()
    parameters = dict(model.named_parameters("denoiser", "text_encoders"))
    narrow = {n: p.dtype for n, p in parameters.items() if p.dtype != torch.float32}
    try:
        for part in sorted({name.split(".", 1)[0] for name in narrow}):
            stored = model.stored_weights(part) if base == "source" else {}
            for name in (n for n in narrow if n.split(".", 1)[0] == part):
                held = parameters[name].data
                exact = unrounded(held, stored.get(name.replace(".base_layer.", ".")))
                parameters[name].data = exact.to(held.device, torch.float32, copy=True)
                del held, exact
        yield
    finally:
        for part in set(model.loaded()) - set(before):
            model.release(part)
        kept = set(model.loaded())
        for name, dtype in narrow.items():
            if name.split(".", 1)[0] in kept:
                parameters[name].data = parameters[name].data.to(dtype)


def unrounded(held: Tensor, stored: Tensor | None) -> Tensor:
    """Return the source's weight where a held one is no more than that, rounded."""
    if stored is None or stored.shape != held.shape:
        return held
    return stored if torch.equal(stored.to(held.device, held.dtype), held) else held


@contextmanager
def weights_in_place(model: LoadedModel, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the live model compute with `tensors` (EMA weights may differ from its own).

    Names that it does not have are left out. Parts that were not in memory leave it again.
    """
    before = model.loaded()
    parameters = dict(model.named_parameters("denoiser", "text_encoders"))
    modules = [model.parts[name] for name in model.info.part_names("denoiser", "text_encoders")]
    modes = [(m, m.training) for module in modules for m in module.modules()]
    saved = {name: parameters[name].data for name in tensors if name in parameters}
    try:
        for module in modules:
            module.eval()
        for name, value in saved.items():
            parameters[name].data = tensors[name].detach().to(value.device, value.dtype)
        yield
    finally:
        for name, value in saved.items():
            parameters[name].data = value
        for module, training in modes:
            module.training = training
        for part in set(model.loaded()) - set(before):
            model.release(part)


def apart(here: Tensor, there: Tensor) -> float:
    """Return the largest absolute difference in standard deviations; infinity if not finite.

    What does not vary (guidance of every row) is compared as it is.
    """
    there = there.to(here.device).float()
    spread = there.std(correction=0)
    difference = (here.float() - there).abs().max() / torch.where(spread == 0, 1.0, spread)
    value = float(difference)
    return value if math.isfinite(value) else math.inf
