"""Load an exported diffusers folder back, as another program would, and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dreambooth.interfaces import Check
from dreambooth_plugins.exporter.comparison import (
    SAME_WEIGHTS,
    Outputs,
    Tolerance,
    file_outputs,
    live_outputs,
    verdict,
)
from dreambooth_plugins.model.folder.loading import quiet
from dreambooth_plugins.model.folder.saving import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Context, LoadedModel


def check_folder(
    tensors: Mapping[str, Tensor],
    model: LoadedModel,
    dest: Path,
    ctx: Context,
    dtype: str,
    *,
    live: Mapping[str, Tensor] | None = None,
    tolerance: Tolerance = SAME_WEIGHTS,
) -> Check:
    """Compare the folder with what was trained.

    Each of `tensors` must be in it, equal to the bit (after the cast, in half precision); text
    embeddings, predictions at three timesteps and drawn latents must agree with the live model,
    which computes with `live` (by default with `tensors`).
    """
    here = live_outputs(model, tensors if live is None else live, ctx, base="source")
    with quiet():  # the import gives advice as well
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(str(dest), local_files_only=True)
    return compare_pipeline(
        pipe,
        tensors.items(),
        here,
        model,
        ctx,
        dtype,
        tolerance=tolerance,
        what="opened with diffusers",
    )


def compare_pipeline(
    pipe: Any,
    tensors: Iterable[tuple[str, Tensor]],
    here: Outputs,
    model: LoadedModel,
    ctx: Context,
    dtype: str,
    *,
    tolerance: Tolerance,
    what: str,
) -> Check:
    """Compare a pipeline that was opened from files of precision `dtype`.

    Its weights must be `tensors`, (qualified name, tensor) each; what it answers must be what
    `live_outputs` gave, `here`. `what` begins the message.
    """
    with quiet():
        pipe.to(torch.float32)
    count, wrong = _different(tensors, pipe, DTYPES[dtype])
    if wrong:
        return Check(
            False,
            f"{len(wrong)} of {count} weights differ in the file, e.g. {wrong[0]}",
            {"tensors": count, "different": len(wrong)},
        )
    return verdict(
        here,
        file_outputs(pipe, model, ctx),
        exact=dtype == "fp32",
        tolerance=tolerance,
        what=f"{what}: {count} weights equal",
        count=count,
    )


def _different(
    tensors: Iterable[tuple[str, Tensor]], pipe: Any, dtype: torch.dtype
) -> tuple[int, list[str]]:
    """Return how many tensors there are, and the names of those the pipeline has otherwise."""
    states: dict[str, Mapping[str, Tensor]] = {}
    count, wrong = 0, []
    for name, tensor in tensors:
        count += 1
        part, _, inner = name.partition(".")
        if part not in states:
            states[part] = getattr(pipe, part).state_dict()
        there = states[part].get(inner)
        here = tensor.detach().cpu().to(dtype).float()
        if there is None or there.shape != here.shape or not torch.equal(there.float(), here):
            wrong.append(name)
    return count, wrong
