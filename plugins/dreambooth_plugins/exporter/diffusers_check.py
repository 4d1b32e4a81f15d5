"""Load an exported diffusers folder back, as another program would, and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dreambooth.interfaces import Check
from dreambooth_plugins.common.dtypes import torch_dtype
from dreambooth_plugins.common.quiet import quiet
from dreambooth_plugins.exporter.comparison import (
    Outputs,
    Tolerance,
    file_outputs,
    in_float32,
    live_outputs,
    tolerance_for,
    verdict,
)
from dreambooth_plugins.exporter.merging import trained_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Artifact, Context, LoadedModel


def check_folder(
    artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context, dtype: str
) -> Check:
    """Compare the folder with what was trained.

    Each trained weight, or one that an adapter was folded into, must be in it, equal to the bit
    (after the cast, in half precision); text embeddings, predictions at three timesteps and drawn
    latents must agree with the live model.
    """
    # Within it, so that what the file has of the base is in memory once.
    with in_float32(model, "source"):
        weights = trained_weights(artifact, model)
        here = live_outputs(model, artifact.tensors, ctx, base="source")
        return compare_pipeline(
            model.pipeline(dest),
            weights.items(),
            here,
            model,
            ctx,
            dtype,
            tolerance=tolerance_for(artifact),
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
    count, wrong = _different(tensors, pipe, torch_dtype(dtype))
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
