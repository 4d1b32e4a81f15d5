"""Load an exported diffusers folder back, as another program would, and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dreambooth.interfaces import Check
from dreambooth.interfaces.model import NEW_ROWS
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
from dreambooth_plugins.exporter.merging import learned_rows, trained_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Artifact, Context, LoadedModel


def check_folder(
    artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context, dtype: str
) -> Check:
    """Compare the folder with what was trained.

    Each trained weight, or one that an adapter was folded into, must be in it, equal to the bit
    (after the cast, in half precision), the rows of a learned word at the end of their table; text
    embeddings, predictions at three timesteps and drawn latents must agree with the live model.
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
            rows=learned_rows(artifact),
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
    rows: Mapping[str, Tensor] | None = None,
    load: Callable[[], str] = str,
) -> Check:
    """Compare a pipeline that was opened from files of precision `dtype`.

    Its weights must be `tensors`, (qualified name, tensor) each, and the last of their table
    `rows`; what it answers must be what `live_outputs` gave, `here`. `what` begins the message.
    `load` is called between the two, loads what lies beside, and returns what is wrong with it.
    """
    with quiet():
        pipe.to(torch.float32)
    count, wrong = _different(tensors, pipe, torch_dtype(dtype), rows or {})
    if wrong:
        return Check(
            False,
            f"{len(wrong)} of {count} weights differ in the file, e.g. {wrong[0]}",
            {"tensors": count, "different": len(wrong)},
        )
    if said := load():
        return Check(False, said)
    return verdict(
        here,
        file_outputs(pipe, model, ctx),
        exact=dtype == "fp32",
        tolerance=tolerance,
        what=f"{what}: {count} weights equal",
        count=count,
    )


def _different(
    tensors: Iterable[tuple[str, Tensor]],
    pipe: Any,
    dtype: torch.dtype,
    rows: Mapping[str, Tensor],
) -> tuple[int, list[str]]:
    """Return how many tensors there are, and the names of those the pipeline has otherwise."""
    states: dict[str, Mapping[str, Tensor]] = {}

    def stored(name: str) -> Tensor | None:
        part, _, inner = name.partition(".")
        if part not in states:
            states[part] = getattr(pipe, part).state_dict()
        return states[part].get(inner)

    def same(here: Tensor, there: Tensor | None) -> bool:
        cast = here.detach().cpu().to(dtype).float()
        return there is not None and there.shape == cast.shape and torch.equal(there.float(), cast)

    longer = {name.removesuffix(NEW_ROWS) + "weight": new for name, new in rows.items()}
    count, wrong = len(rows), []
    for name, tensor in tensors:
        count += 1
        there = stored(name)
        if there is not None and name in longer:
            there = there[: -len(longer[name])]
        if not same(tensor, there):
            wrong.append(name)
    for name, new in longer.items():
        there = stored(name)
        if not same(new, None if there is None else there[-len(new) :]):
            wrong.append(f"the new rows of {name}")
    return count, wrong
