"""Load PEFT's folders into a plain pipeline with PEFT, and compare."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from dreambooth.interfaces import Check
from dreambooth_plugins.common.dtypes import torch_dtype
from dreambooth_plugins.common.libraries import peft, unquantized
from dreambooth_plugins.common.quiet import quiet
from dreambooth_plugins.exporter.comparison import (
    SAME_WEIGHTS,
    file_outputs,
    in_float32,
    live_outputs,
    verdict,
)
from dreambooth_plugins.exporter.embedding_check import load_word
from dreambooth_plugins.formats.lora.peft_folder import ADAPTER

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from dreambooth.interfaces import Artifact, Context, LoadedModel


def check_folders(
    artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context, dtype: str
) -> Check:
    """Open each part's folder with `PeftModel.from_pretrained`; compare with the live model.

    Every tensor of the adapters must be equal to the bit (after the file's cast); text embeddings,
    predictions and drawn latents must agree. A learned word is loaded from its files.
    """
    parts = artifact.metadata["adapters"]
    # Copies: a constrained OFT projects its weights in place in each forward pass.
    wanted = {name: tensor.detach().clone() for name, tensor in _adapters(artifact).items()}
    with (
        in_float32(model, "held"),
        quiet(),
        warnings.catch_warnings(action="ignore"),
        unquantized(),
    ):
        here = live_outputs(model, artifact.tensors, ctx)
        pipe = model.pipeline()
        found: dict[str, torch.Tensor] = {}
        for part in parts:
            try:
                read = peft.PeftModel.from_pretrained(
                    getattr(pipe, part), dest / part, adapter_name=ADAPTER, torch_device="cpu"
                )
            except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
                said = (str(error) or type(error).__name__).splitlines()[0]
                return Check(False, f"PEFT cannot open {part}: {said}")
            found |= {f"{part}.{n}": t for n, t in _inside(read).items()}
        wrong = [n for n, t in wanted.items() if not _equal(t, found.get(n), dtype)]
        word = "" if wrong else load_word(pipe, artifact, dest, dtype, model.info)
        pipe.to(torch.float32)  # adapters of a half-precision file; the base is float32 already
        there = None if wrong or word else file_outputs(pipe, model, ctx)
    count = len(wanted)
    if word:
        return Check(False, word)
    if there is None:
        return Check(
            False,
            f"{len(wrong)} of {count} tensors differ in the folders, e.g. {wrong[0]}",
            {"tensors": count, "different": len(wrong)},
        )
    return verdict(
        here,
        there,
        exact=dtype == "fp32",
        tolerance=SAME_WEIGHTS,
        what=f"opened with PEFT: {count} tensors equal",
        count=count,
    )


def _inside(read: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of the module that PEFT has put its layers into."""
    state: dict[str, torch.Tensor] = read.base_model.model.state_dict()
    return state


def _adapters(artifact: Artifact) -> dict[str, torch.Tensor]:
    """Return the artifact's tensors without a learned word's rows."""
    modules = {
        f"{part}.{module}."
        for part, adapter in artifact.metadata["adapters"].items()
        for module in adapter["modules"]
    }
    return {n: t for n, t in artifact.tensors.items() if any(map(n.startswith, modules))}


def _equal(here: torch.Tensor, there: torch.Tensor | None, dtype: str) -> bool:
    if there is None or there.shape != here.shape:
        return False
    return torch.equal(there.cpu().float(), here.detach().cpu().to(torch_dtype(dtype)).float())
