"""Learned embeddings as files: diffusers' layout (word -> rows) and A1111's (`emb_params`)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dreambooth.errors import JobError, RunError
from dreambooth.interfaces.model import NEW_ROWS
from dreambooth_plugins.common.headers import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth.interfaces import Artifact

MAX_ROWS = 64
"""What the option `vectors` allows."""
EMBEDDING_FILE = "learned_embeds.safetensors"
"""Where a learned word lies, in diffusers' layout."""
A1111_FOLDER = "embeddings"
"""Where it lies for AUTOMATIC1111, Forge and ComfyUI, in a file that is called by the word."""
_A1111_KEY = "emb_params"


def embedding_file(path: Path) -> Path:
    """Return the file itself, or that of a folder; `JobError` if there is none."""
    file = path / EMBEDDING_FILE if path.is_dir() else path
    if not file.is_file():
        raise JobError(f"there is no file {file}", "name a textual inversion file (.safetensors)")
    if file.suffix.lower() != ".safetensors":
        raise JobError(
            f"{file} is not a .safetensors file", "convert it first: others can run code"
        )
    return file


def read_shape(path: Path) -> tuple[int, int]:
    """Return how many rows a file has and how wide they are, from its header alone.

    `JobError` where it holds anything else than the rows of one word.
    """
    file = embedding_file(path)
    header = read_header(file)
    shapes = list(header.shapes.values())
    if len(shapes) != 1 or len(shapes[0]) not in (1, 2):
        raise JobError(
            f"{file} holds {len(shapes)} tensors, and not the rows of one word",
            "textual inversion files of SD 1.x and 2.x have one tensor; SDXL's have two",
        )
    [(name, shape)] = header.shapes.items()
    count, width = (1, shape[0]) if len(shape) == 1 else shape
    if not 1 <= count <= MAX_ROWS or width < 1 or not header.floating(name):
        raise JobError(
            f"{file} holds {count} rows of width {width}, {header.dtypes[name]}",
            f"a word has 1 to {MAX_ROWS} rows of floating-point numbers",
        )
    return count, width


def read_rows(path: Path, rows: Mapping[str, Parameter]) -> None:
    """Copy a file's rows into new ones; `JobError` where they are not of that number or width.

    Rows on the `meta` device are checked in the same way, and stay without values.
    """
    import torch

    from dreambooth_plugins.common.tensors import opened

    file = embedding_file(path)
    count, width = read_shape(path)
    for name, row in rows.items():
        if tuple(row.shape) != (count, width):
            raise JobError(
                f"{file} has {count} rows of width {width}, {name} has {row.shape[0]} of "
                f"{row.shape[1]}",
                "it is for another kind of model, or freezing.vectors says another number",
            )
    with opened(file, "download it again") as tensors:
        [values] = map(tensors.get_tensor, tensors.keys())
    if not values.isfinite().all():
        raise JobError(f"{file} holds NaN or infinity", "the file is damaged: download it again")
    for row in rows.values():
        with torch.no_grad():
            row.copy_(values.reshape(count, width))


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


def token_names(name: str, count: int) -> list[str]:
    """Return the names of a word's tokens, as diffusers looks for them: `x`, `x_1`, `x_2`, ..."""
    return [name, *(f"{name}_{i}" for i in range(1, count))]


def a1111_file(word: str) -> str:
    """Return the file that AUTOMATIC1111 and ComfyUI take for the word: `<my-dog>`, my-dog."""
    name = re.sub(r"[^\w.-]+", "-", word).strip("-.") or "word"
    return f"{A1111_FOLDER}/{name}.safetensors"


def write_word(artifact: Artifact, dest: Path, dtype: str) -> None:
    """Write diffusers' layout (word -> rows) and A1111's (`emb_params`), where there is a word."""
    if (found := word_of(artifact)) is None:
        return
    from dreambooth_plugins.common.tensors import write_tensors

    word, _, rows = found
    write_tensors(dest / EMBEDDING_FILE, {word: rows}, {}, dtype)
    (dest / A1111_FOLDER).mkdir(exist_ok=True)
    write_tensors(dest / a1111_file(word), {_A1111_KEY: rows}, {}, dtype)
