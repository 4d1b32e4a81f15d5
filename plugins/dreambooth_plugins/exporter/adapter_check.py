"""Load an adapter file into a plain pipeline with diffusers, and compare."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.interfaces import Check
from dreambooth_plugins.common.dtypes import torch_dtype
from dreambooth_plugins.common.libraries import BaseTunerLayer, unquantized
from dreambooth_plugins.common.quiet import quiet
from dreambooth_plugins.exporter.comparison import (
    SAME_WEIGHTS,
    file_outputs,
    in_float32,
    live_outputs,
    verdict,
)
from dreambooth_plugins.exporter.embedding_check import load_word
from dreambooth_plugins.formats.embedding import EMBEDDING_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Artifact, Context, LoadedModel
    from dreambooth_plugins.formats.lora.low_rank import LowRank

NAME = "file"
"""What the loaded adapter is called in the pipeline."""


def check_file(
    artifact: Artifact,
    adapters: Sequence[LowRank],
    model: LoadedModel,
    dest: Path,
    ctx: Context,
    dtype: str,
) -> Check:
    """Open the file in `dest` with `load_lora_weights` and compare it with the live model.

    `adapters` is what was written into it. Every factor must be equal to the bit (after the
    file's cast) and every scale as it was; text embeddings, predictions and drawn latents must
    agree. A learned word is loaded from its files. The base has the values that were trained
    against, and both sides compute with them in float32.
    """
    [file] = (path for path in dest.glob("*.safetensors") if path.name != EMBEDDING_FILE)
    # PEFT warns where a file lacks modules that it names; they are missed below.
    with (
        in_float32(model, "held"),
        quiet(),
        warnings.catch_warnings(action="ignore"),
        unquantized(),
    ):
        here = live_outputs(model, artifact.tensors, ctx)
        pipe = model.pipeline()
        try:
            pipe.load_lora_weights(str(dest), weight_name=file.name, adapter_name=NAME)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            return Check(False, f"diffusers cannot open {file.name}: {error}")
        wrong = [a for a in adapters if not _equal(a, pipe, torch_dtype(dtype))]
        word = "" if wrong else load_word(pipe, artifact, dest, dtype, model.info)
        pipe.to(torch.float32)  # adapters of a half-precision file; the base is float32 already
        there = None if wrong or word else file_outputs(pipe, model, ctx)
    if word:
        return Check(False, word)
    if there is None:
        return Check(
            False,
            f"{len(wrong)} of {len(adapters)} adapters differ in the file, e.g. that of "
            f"{wrong[0].part}.{wrong[0].module}",
            {"tensors": len(adapters), "different": len(wrong)},
        )
    return verdict(
        here,
        there,
        exact=dtype == "fp32",
        tolerance=SAME_WEIGHTS,
        what=f"opened with diffusers: {len(adapters)} adapters equal",
        count=len(adapters),
    )


def _equal(adapter: LowRank, pipe: Any, dtype: torch.dtype) -> bool:
    layer: Any = getattr(pipe, adapter.part).get_submodule(adapter.module)
    if not isinstance(layer, BaseTunerLayer) or NAME not in layer.lora_A:
        return False
    there: list[tuple[Tensor, Tensor | None]] = [
        (layer.lora_A[NAME].weight, adapter.down),
        (layer.lora_B[NAME].weight, adapter.up),
    ]
    if adapter.magnitude is not None:
        if NAME not in layer.lora_magnitude_vector:
            return False
        there.append((layer.lora_magnitude_vector[NAME].weight, adapter.magnitude))
    same = all(
        one.shape == other.shape and torch.equal(one.cpu(), other.cpu().to(dtype).to(one.dtype))
        for one, other in there
        if other is not None
    )
    return same and math.isclose(layer.scaling[NAME], adapter.scale, rel_tol=1e-6)
