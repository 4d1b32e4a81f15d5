"""Load the files of a learned word with `load_textual_inversion`, and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dreambooth.interfaces import Check
from dreambooth_plugins.common.dtypes import torch_dtype
from dreambooth_plugins.common.quiet import quiet
from dreambooth_plugins.exporter.comparison import (
    SAME_WEIGHTS,
    file_outputs,
    in_float32,
    live_outputs,
    verdict,
)
from dreambooth_plugins.formats.embedding import (
    EMBEDDING_FILE,
    a1111_file,
    calls,
    places,
    token_names,
    word_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Artifact, Context, LoadedModel, ModelInfo


def load_word(pipe: Any, artifact: Artifact, dest: Path, dtype: str, info: ModelInfo) -> str:
    """Load both files into the pipeline, A1111's under another word; return what is wrong.

    The rows must be those of the artifact, after the casts: the file's, and diffusers' to the
    encoder's precision. Empty where they are, and where there is no word.
    """
    if (found := word_of(artifact)) is None:
        return ""
    word, names, rows = found
    # What is read from A1111's file gets names that the tokenizer does not have.
    again = f"{word[:-1]}-again{word[-1:]}"
    others = token_names(again, len(names))
    # transformers draws numbers for new rows before diffusers puts its own in.
    with torch.random.fork_rng(devices=[]), quiet():
        for file, tokens in ((dest / EMBEDDING_FILE, names), (dest / a1111_file(word), others)):
            try:
                for options in calls(pipe, file, tokens[0], info, own=tokens is names):
                    pipe.load_textual_inversion(**options)
            except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
                said = (str(error) or type(error).__name__).splitlines()[0]
                return f"diffusers cannot open {file.name}: {said}"
            stored = {part: tensor.to(torch_dtype(dtype)) for part, tensor in rows.items()}
            if not _equal(pipe, tokens, stored, info):
                return f"the rows of {word} differ in {file.name}"
    return ""


def _equal(pipe: Any, tokens: list[str], rows: Mapping[str, Tensor], info: ModelInfo) -> bool:
    for part, (_, tokenizer) in places(info).items():
        known = getattr(pipe, tokenizer).get_vocab()
        if not all(token in known for token in tokens):
            return False
        table = getattr(pipe, part).get_input_embeddings().weight
        there, here = table[[known[token] for token in tokens]].cpu(), rows[part]
        if there.shape != here.shape or not torch.equal(there, here.to(there.dtype)):
            return False
    return True


def check_word(
    artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context, dtype: str
) -> Check:
    """Load the files into the base with diffusers and compare it with the live model."""
    with in_float32(model, "held"):
        here = live_outputs(model, artifact.tensors, ctx)
        with quiet():
            pipe = model.pipeline()
        wrong = load_word(pipe, artifact, dest, dtype, model.info)
        there = None if wrong else file_outputs(pipe, model, ctx)
    if there is None:
        return Check(False, wrong, {"tensors": 1, "different": 1})
    return verdict(
        here,
        there,
        exact=dtype == "fp32",
        tolerance=SAME_WEIGHTS,
        what="opened with load_textual_inversion: rows equal",
        count=1,
    )
