"""Learned embeddings as files: diffusers' layout (word -> rows) and A1111's (`emb_params`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.errors import JobError
from dreambooth_plugins.common.headers import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.nn import Parameter

MAX_ROWS = 64
"""What the option `vectors` allows."""
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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = embedding_file(path)
    count, width = read_shape(path)
    for name, row in rows.items():
        if tuple(row.shape) != (count, width):
            raise JobError(
                f"{file} has {count} rows of width {width}, {name} has {row.shape[0]} of "
                f"{row.shape[1]}",
                "it is for another kind of model, or freezing.vectors says another number",
            )
    try:
        [values] = load_file(file).values()
    except (SafetensorError, OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise JobError(f"{file} cannot be read: {said}", "download it again") from error
    if not values.isfinite().all():
        raise JobError(f"{file} holds NaN or infinity", "the file is damaged: download it again")
    for row in rows.values():
        with torch.no_grad():
            row.copy_(values.reshape(count, width))
