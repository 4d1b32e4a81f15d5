"""Learned embeddings as files: diffusers' layout (word -> rows) and A1111's (`emb_params`).

Models of two text encoders have rows in both: there both files are alike, and call the rows what
`ModelInfo.learns_words` says (`clip_l`, `clip_g`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError, RunError
from dreambooth.interfaces.model import NEW_ROWS
from dreambooth_plugins.common.headers import read_header

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth.files.headers import Header
    from dreambooth.interfaces import Artifact, ModelInfo

MAX_ROWS = 64
"""What the option `vectors` allows."""
EMBEDDING_FILE = "learned_embeds.safetensors"
"""Where a learned word lies, in diffusers' layout."""
A1111_FOLDER = "embeddings"
"""Where it lies for AUTOMATIC1111, Forge and ComfyUI, in a file that is called by the word."""


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


def read_shape(path: Path, keys: Collection[str] = ("",)) -> tuple[int, dict[str, int]]:
    """Return how many rows a file has, and how wide they are by `keys`, from its header alone.

    `keys` are what the rows of each text encoder are called; where there is one encoder, its rows
    may be called anything. `JobError` where the file holds anything else than the rows of one word.
    """
    file = embedding_file(path)
    header = read_header(file)
    names = list(header.shapes)
    single = len(keys) == 1
    if len(names) != len(keys) or not (single or set(names) == set(keys)):
        wanted = "one tensor" if single else " and ".join(sorted(keys))
        raise JobError(
            f"{file} holds {len(names)} tensors, and not the rows of one word for this model",
            f"a textual inversion file for it has {wanted}; those of SD 1.x and 2.x have one "
            "tensor, those of SDXL clip_l and clip_g",
        )
    found = {key: _shape(file, header, names[0] if single else key) for key in keys}
    counts = {count for count, _ in found.values()}
    if len(counts) > 1:
        raise JobError(f"{file} has {sorted(counts)} rows for one word", "download it again")
    return counts.pop(), {key: width for key, (_, width) in found.items()}


def _shape(file: Path, header: Header, name: str) -> tuple[int, int]:
    shape = header.shapes[name]
    if len(shape) not in (1, 2):
        raise JobError(
            f"{file} holds a tensor {list(shape)}, and not the rows of one word",
            "a word has rows, or one row",
        )
    count, width = (1, shape[0]) if len(shape) == 1 else shape
    if not 1 <= count <= MAX_ROWS or width < 1 or not header.floating(name):
        raise JobError(
            f"{file} holds {count} rows of width {width}, {header.dtypes[name]}",
            f"a word has 1 to {MAX_ROWS} rows of floating-point numbers",
        )
    return count, width


def read_rows(path: Path, rows: Mapping[str, Parameter], names: Mapping[str, str]) -> None:
    """Copy a file's rows into new ones; `JobError` where they are not of that number or width.

    `names` are those of the parts' rows in the file (`ModelInfo.learns_words`). Rows on the `meta`
    device are checked in the same way, and stay without values.
    """
    import torch

    from dreambooth_plugins.common.tensors import opened

    file = embedding_file(path)
    count, widths = read_shape(path, tuple(names.values()))
    keys = {row: names[row.split(".", 1)[0]] for row in rows}
    for name, row in rows.items():
        if tuple(row.shape) != (count, widths[keys[name]]):
            raise JobError(
                f"{file} has {count} rows of width {widths[keys[name]]}, {name} has "
                f"{row.shape[0]} of {row.shape[1]}",
                "it is for another kind of model, or freezing.vectors says another number",
            )
    with opened(file, "download it again") as tensors:
        held = list(tensors.keys())
        values = {
            name: tensors.get_tensor(held[0] if len(names) == 1 else keys[name]) for name in rows
        }
    if not all(tensor.isfinite().all() for tensor in values.values()):
        raise JobError(f"{file} holds NaN or infinity", "the file is damaged: download it again")
    for name, row in rows.items():
        with torch.no_grad():
            row.copy_(values[name].reshape(row.shape))


def word_of(artifact: Artifact) -> tuple[str, list[str], dict[str, Tensor]] | None:
    """Return the word an artifact has rows for, its tokens' names, and the rows [n, dim] float32 of
    each part.

    None without a word; `RunError` for what these layouts cannot hold.
    """
    words = artifact.metadata.get("tokens") or {}
    rows = {
        name.split(".", 1)[0]: tensor.detach().float().cpu()
        for name, tensor in artifact.tensors.items()
        if name.endswith(NEW_ROWS)
    }
    if not words and not rows:
        return None
    if len(words) != 1 or not rows:
        raise RunError(
            f"a textual inversion file holds one word, not {len(words)} words of {len(rows)} text "
            "encoders",
            "export the whole model (merged, or a diffusers folder)",
        )
    [(word, names)] = words.items()
    return word, list(names), rows


def stored_rows(
    word: str, rows: Mapping[str, Tensor], info: ModelInfo
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return name -> rows in diffusers' file, and in A1111's."""
    named = {info.learns_words[part]: tensor for part, tensor in rows.items()}
    return ({word: next(iter(rows.values()))}, named) if len(rows) == 1 else (named, named)


def places(info: ModelInfo) -> dict[str, tuple[str, str]]:
    """Return part -> (name of its rows in a file, what diffusers' pipelines call its tokenizer)."""
    return {
        part: (name, part.replace("text_encoder", "tokenizer"))
        for part, name in info.learns_words.items()
    }


def loading_code(word: str, info: ModelInfo) -> list[str]:
    """Return the lines of Python that load a word's file into `pipe`."""
    if len(info.learns_words) == 1:
        return [f"pipe.load_textual_inversion({EMBEDDING_FILE!r})  # {word}"]
    lines = [f"rows = load_file({EMBEDDING_FILE!r})  # {word}"]
    for part, (name, tokenizer) in places(info).items():
        at = f"text_encoder=pipe.{part}, tokenizer=pipe.{tokenizer}"
        lines.append(f"pipe.load_textual_inversion(rows[{name!r}], token={word!r}, {at})")
    return ["from safetensors.torch import load_file", *lines]


def calls(
    pipe: Any, file: Path, token: str, info: ModelInfo, *, own: bool
) -> Iterator[dict[str, Any]]:
    """Yield what each call of `load_textual_inversion` is given, one a text encoder.

    `own`: the file says itself which word its rows are of.
    """
    if len(info.learns_words) == 1:
        word = None if own else token
        yield {"pretrained_model_name_or_path": str(file), "token": word}
        return
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        for part, (name, tokenizer) in places(info).items():
            yield {
                "pretrained_model_name_or_path": tensors.get_tensor(name),
                "token": token,
                "text_encoder": getattr(pipe, part),
                "tokenizer": getattr(pipe, tokenizer),
            }


def token_names(name: str, count: int) -> list[str]:
    """Return the names of a word's tokens, as diffusers looks for them: `x`, `x_1`, `x_2`, ..."""
    return [name, *(f"{name}_{i}" for i in range(1, count))]


def a1111_file(word: str) -> str:
    """Return the file that AUTOMATIC1111 and ComfyUI take for the word: `<my-dog>`, my-dog."""
    name = re.sub(r"[^\w.-]+", "-", word).strip("-.") or "word"
    return f"{A1111_FOLDER}/{name}.safetensors"


def write_word(artifact: Artifact, dest: Path, dtype: str, info: ModelInfo) -> None:
    """Write diffusers' layout (word -> rows) and A1111's (`emb_params`), where there is a word."""
    if (found := word_of(artifact)) is None:
        return
    from dreambooth_plugins.common.tensors import write_tensors

    word, _, rows = found
    ours, theirs = stored_rows(word, rows, info)
    write_tensors(dest / EMBEDDING_FILE, ours, {}, dtype)
    (dest / A1111_FOLDER).mkdir(exist_ok=True)
    write_tensors(dest / a1111_file(word), theirs, {}, dtype)
