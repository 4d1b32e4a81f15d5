"""Learned embeddings as files: diffusers' layout (word -> rows) and A1111's (`emb_params`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.errors import JobError
from dreambooth_plugins.model.headers import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.nn import Parameter

EMBEDDING_FILE = "learned_embeds.safetensors"


def embedding_file(path: Path) -> Path:
    """Return the file itself, or that of a folder; `JobError` if there is none."""
    file = path / EMBEDDING_FILE if path.is_dir() else path
    if not file.is_file():
        raise JobError(f"there is no file {file}", "name a textual inversion file (.safetensors)")
    if file.suffix != ".safetensors":
        raise JobError(
            f"{file} is not a .safetensors file", "convert it first: others can run code"
        )
    return file


def read_shape(path: Path) -> tuple[int, int]:
    """Return how many rows a file has and how wide they are, from its header alone.

    `JobError` where it holds anything else than the rows of one word.
    """
    file = embedding_file(path)
    shapes = list(read_header(file).shapes.values())
    if len(shapes) != 1 or len(shapes[0]) not in (1, 2):
        raise JobError(
            f"{file} holds {len(shapes)} tensors, and not the rows of one word",
            "textual inversion files of SD 1.x and 2.x have one tensor; SDXL's have two",
        )
    [shape] = shapes
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def read_rows(path: Path, rows: Mapping[str, Parameter]) -> None:
    """Copy a file's rows into new ones; `JobError` where they are not of that number or width."""
    import torch
    from safetensors.torch import load_file

    file = embedding_file(path)
    count, width = read_shape(path)
    [values] = load_file(file).values()
    for name, row in rows.items():
        if tuple(row.shape) != (count, width):
            raise JobError(
                f"{file} has {count} rows of width {width}, {name} has {row.shape[0]} of "
                f"{row.shape[1]}",
                "it is for another kind of model, or freezing.vectors says another number",
            )
        with torch.no_grad():
            row.copy_(values.reshape(count, width))
