"""Load an exported diffusers folder back, as another program would, and compare."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.interfaces import Check
from dreambooth_plugins.model.loading import quiet
from dreambooth_plugins.model.saving import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Context, LoadedModel

PROMPT = "a photo of a dog"
TIMESTEPS = (0.05, 0.5, 0.95)
"""Where predictions are compared, as shares of the schedule."""
TOLERANCE = 1e-5
"""Largest difference of a float32 prediction, in standard deviations of the prediction."""
LOOSE = 0.25
"""The same where either side is rounded to half precision: enough to see a wrong file."""
MAX_SIDE = 32
"""Latent cells a side, so that the check of a large model takes seconds."""


def check_folder(
    tensors: Mapping[str, Tensor], model: LoadedModel, dest: Path, ctx: Context, dtype: str
) -> Check:
    """Compare the folder with what was trained.

    Every trained tensor must be equal to the bit (after the cast, in half precision), and text
    embeddings and predictions at three timesteps must agree with the live model.
    """
    with quiet():  # the import gives advice as well
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(str(dest), local_files_only=True)
        pipe.to(torch.float32)
    wrong = _different(tensors, pipe, DTYPES[dtype])
    if wrong:
        return Check(
            False,
            f"{len(wrong)} of {len(tensors)} trained weights differ in the file, e.g. {wrong[0]}",
            {"tensors": len(tensors), "different": len(wrong)},
        )
    figures, exact = _compare_outputs(tensors, model, pipe, ctx)
    tolerance = TOLERANCE if exact and dtype == "fp32" else LOOSE
    # `not <=` is true of NaN as well.
    bad = [name for name in ("text", "denoiser") if not figures[name] <= tolerance]
    return Check(
        not bad,
        f"opened with diffusers: {len(tensors)} trained weights equal, prediction within "
        f"{figures['denoiser']:.1e} and text within {figures['text']:.1e} of their deviation"
        + (f" (more than {tolerance:.0e} allows)" if bad else ""),
        {"tensors": len(tensors), "different": 0, **figures},
    )


def _different(tensors: Mapping[str, Tensor], pipe: Any, dtype: torch.dtype) -> list[str]:
    states: dict[str, Mapping[str, Tensor]] = {}
    wrong = []
    for name, tensor in tensors.items():
        part, _, inner = name.partition(".")
        if part not in states:
            states[part] = getattr(pipe, part).state_dict()
        there = states[part].get(inner)
        here = tensor.detach().cpu().to(dtype).float()
        if there is None or there.shape != here.shape or not torch.equal(there.float(), here):
            wrong.append(name)
    return wrong


@torch.no_grad()
def _compare_outputs(
    tensors: Mapping[str, Tensor], model: LoadedModel, pipe: Any, ctx: Context
) -> tuple[dict[str, float], bool]:
    """Return differences of text embeddings and predictions, and whether all was float32."""
    before = model.loaded()
    latents, t = _inputs(model)
    with _weights_in_place(model, tensors) as exact:
        with ctx.autocast() if not exact else torch.autocast(ctx.device.type, enabled=False):
            cond = model.collate(model.encode_prompts([PROMPT]) * len(t))
            here = model.denoise(latents.to(ctx.device), t.to(ctx.device), cond)
    for part in set(model.loaded()) - set(before):
        model.release(part)

    pipe.text_encoder.to(ctx.device)
    embeds, _ = pipe.encode_prompt(PROMPT, ctx.device, 1, False)
    pipe.text_encoder.to("cpu")
    pipe.unet.to(ctx.device)
    there = pipe.unet(
        latents.to(ctx.device),
        t.to(ctx.device),
        encoder_hidden_states=embeds.expand(len(t), -1, -1),
    ).sample
    figures = {
        "text": _apart(cond.tensors["embeds"][:1], embeds),
        "denoiser": _apart(here, there),
    }
    return figures, exact


def _inputs(model: LoadedModel) -> tuple[Tensor, Tensor]:
    """Return fixed noise [3, C, h, w] and timesteps [3]."""
    spec = model.info.latent
    step = spec.multiple // spec.factor
    side = max(step, min(model.info.resolution // spec.factor, MAX_SIDE) // step * step)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(TIMESTEPS), spec.channels, side, side, generator=generator)
    steps = model.info.schedule.get("num_train_timesteps", 1000)
    return latents, torch.tensor([int(share * steps) for share in TIMESTEPS])


@contextmanager
def _weights_in_place(model: LoadedModel, tensors: Mapping[str, Tensor]) -> Iterator[bool]:
    """Let the live model compute with `tensors` (EMA weights may differ from its own).

    Yields whether everything it computes with is float32. Parameters that adapters have renamed
    keep their own value.
    """
    parameters = dict(model.named_parameters("denoiser", "text_encoders"))
    modules = [model.parts[name] for name in model.info.part_names("denoiser", "text_encoders")]
    modes = [(m, m.training) for module in modules for m in module.modules()]
    saved = {name: parameters[name].data for name in tensors if name in parameters}
    try:
        for module in modules:
            module.eval()
        for name, value in saved.items():
            parameters[name].data = tensors[name].detach().to(value.device, value.dtype)
        yield all(p.dtype == torch.float32 for p in parameters.values())
    finally:
        for name, value in saved.items():
            parameters[name].data = value
        for module, training in modes:
            module.training = training


def _apart(here: Tensor, there: Tensor) -> float:
    """Return the largest absolute difference in standard deviations; infinity if not finite."""
    difference = (here.float() - there.float()).abs().max() / there.float().std()
    value = float(difference)
    return value if math.isfinite(value) else math.inf
