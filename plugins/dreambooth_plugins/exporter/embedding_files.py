"""The rows of a learned word as files, and reading them back with `load_textual_inversion`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.errors import RunError
from dreambooth.interfaces import NEW_ROWS, Check
from dreambooth_plugins.exporter.adapter_files import save
from dreambooth_plugins.exporter.comparison import (
    SAME_WEIGHTS,
    file_outputs,
    in_float32,
    live_outputs,
    verdict,
)
from dreambooth_plugins.exporter.usage import WORD_FILE
from dreambooth_plugins.model.loading import quiet
from dreambooth_plugins.model.saving import DTYPES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Artifact, Context, LoadedModel

A1111_FOLDER, A1111_KEY = "embeddings", "emb_params"


def word_of(artifact: Artifact) -> tuple[str, list[str], Tensor] | None:
    """Return the word an artifact has rows for, its tokens' names, and the rows [n, dim] float32.

    None without a word; `RunError` for what these layouts cannot hold.
    """
    words = artifact.metadata.get("tokens") or {}
    rows = [t for name, t in artifact.tensors.items() if name.endswith(NEW_ROWS)]
    if not words and not rows:
        return None
    if len(words) != 1 or len(rows) != 1:
        raise RunError(
            f"a textual inversion file holds one word of one text encoder, not {len(words)} "
            f"words of {len(rows)}",
            "export the whole model (merged, or a diffusers folder)",
        )
    [(word, names)] = words.items()
    return word, list(names), rows[0].detach().float().cpu()


def a1111_name(word: str) -> str:
    """Return the file name that AUTOMATIC1111 and ComfyUI take for the word: `<my-dog>`, my-dog."""
    return re.sub(r"[^\w.-]+", "-", word).strip("-.") or "word"


def write_word(artifact: Artifact, dest: Path, dtype: str) -> None:
    """Write diffusers' layout (word -> rows) and A1111's (`emb_params`), where there is a word."""
    if (found := word_of(artifact)) is None:
        return
    word, _, rows = found
    save({word: rows}, dest / WORD_FILE, dtype, {})
    folder = dest / A1111_FOLDER
    folder.mkdir(exist_ok=True)
    save({A1111_KEY: rows}, folder / f"{a1111_name(word)}.safetensors", dtype, {})


def load_word(pipe: Any, artifact: Artifact, dest: Path, dtype: str) -> str:
    """Load both files into the pipeline, A1111's under another word; return what is wrong.

    The rows must be those of the artifact, after the casts: the file's, and diffusers' to the
    encoder's precision. Empty where they are, and where there is no word.
    """
    if (found := word_of(artifact)) is None:
        return ""
    word, names, rows = found
    # What is read from A1111's file gets names that the tokenizer does not have.
    again = f"{word[:-1]}-again{word[-1:]}"
    others = [again, *(f"{again}_{i}" for i in range(1, len(names)))]
    a1111 = dest / A1111_FOLDER / f"{a1111_name(word)}.safetensors"
    # transformers draws numbers for new rows before diffusers puts its own in.
    with torch.random.fork_rng(devices=[]), quiet():
        for file, tokens in ((dest / WORD_FILE, names), (a1111, others)):
            given = None if tokens is names else tokens[0]
            try:
                pipe.load_textual_inversion(str(file), token=given)
            except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
                said = (str(error) or type(error).__name__).splitlines()[0]
                return f"diffusers cannot open {file.name}: {said}"
            if not _equal(pipe, tokens, rows.to(DTYPES[dtype])):
                return f"the rows of {word} differ in {file.name}"
    return ""


def _equal(pipe: Any, tokens: list[str], rows: Tensor) -> bool:
    known = pipe.tokenizer.get_vocab()
    if not all(token in known for token in tokens):
        return False
    table = pipe.text_encoder.get_input_embeddings().weight
    there = table[[known[token] for token in tokens]].cpu()
    return there.shape == rows.shape and torch.equal(there, rows.to(there.dtype))


def check_word(
    artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context, dtype: str
) -> Check:
    """Load the files into the base with diffusers and compare it with the live model."""
    with in_float32(model, "held"):
        here = live_outputs(model, artifact.tensors, ctx)
        with quiet():
            pipe = model.pipeline()
        wrong = load_word(pipe, artifact, dest, dtype)
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
