"""A diffusers folder that old and new versions of diffusers, and other tools, can read."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from dreambooth.errors import RunError
from dreambooth.files import write_json
from dreambooth.interfaces.model import NEW_ROWS
from dreambooth_plugins.common.dtypes import HEADER_NAMES, torch_dtype
from dreambooth_plugins.common.headers import read_header
from dreambooth_plugins.common.libraries import diffusers
from dreambooth_plugins.common.tensors import write_tensors
from dreambooth_plugins.model.folder.loading import load_part, skeleton
from dreambooth_plugins.model.folder.tokenizer import save_tokenizer
from dreambooth_plugins.model.folder.tokens import new_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module
    from transformers import CLIPTokenizer

    from dreambooth_plugins.model.folder.loading import Parts
    from dreambooth_plugins.model.folder.part import Part
    from dreambooth_plugins.model.folder.source import Source

MAX_SHARD = 10 * 1000**3
"""Bytes in one weight file, diffusers' own limit."""


def save_folder(
    source: Source,
    parts: Parts,
    tokenizers: Mapping[str, CLIPTokenizer],
    dest: Path,
    solver_config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dtype: str,
    index: Mapping[str, Any],
) -> None:
    """Write the whole pipeline into `dest`, one part after the other (see `LoadedModel.save`).

    `tokenizers` go by their folder; `index` is what model_index.json says besides the parts. Rows
    of added tokens are written where the tokenizer has the tokens.
    """
    overlay: dict[str, dict[str, Tensor]] = {part.name: {} for part in source.parts}
    for name, tensor in weights.items():
        part, _, inner = name.partition(".")
        if part not in overlay:
            raise RunError(f"{name} is no weight of this model", "this is a plugin's mistake")
        overlay[part][source.part(part).file_key(inner)] = tensor
    for known in source.parts:
        if known.frozen:
            copy_part(source, known, dest)
            continue
        reads = tokenizers.get(known.tokenizer or "")
        _save_part(source, parts, known, dest / known.name, overlay[known.name], dtype, reads)
    for name, tokenizer in tokenizers.items():
        save_tokenizer(tokenizer, dest / name)
    (dest / "scheduler").mkdir(parents=True, exist_ok=True)
    write_json(dest / "scheduler" / "scheduler_config.json", dict(solver_config))
    scheduler = str(solver_config["_class_name"])
    write_json(dest / "model_index.json", model_index(source.parts, scheduler, index))


def model_index(parts: Sequence[Part], scheduler: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return `model_index.json` of a pipeline with a scheduler of that class; `more` is its own
    class (`_class_name`) and what else the pipeline has."""
    tokenizers = {part.tokenizer: part.tokenizer_cls for part in parts if part.tokenizer}
    entries = {
        **more,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", scheduler],
        **{part.name: part.entry for part in parts},
        **{name: ["transformers", cls] for name, cls in tokenizers.items()},
    }
    return dict(sorted(entries.items()))


def copy_part(source: Source, known: Part, dest: Path) -> None:
    """Bring a part that never trains and its tokenizer into `dest` as the source has them."""
    here, there = source.config_folder(known.name), dest / known.name
    there.mkdir(parents=True, exist_ok=True)
    if source.part_variant(known.name) is not None:
        # Files of a variant have its name in theirs, and an index names them.
        module: Any = load_part(source, known.name, torch.float32)
        module.save_pretrained(str(there), max_shard_size=MAX_SHARD)
    else:
        files = source.weight_files(known.name)
        indices = [f for f in here.glob("*.index.json") if len(files) > 1]
        for file in (*files, *indices):
            shutil.copyfile(file, there / file.name)
        for name in ("config.json", "generation_config.json"):
            if (here / name).is_file():
                shutil.copyfile(here / name, there / name)
    if known.tokenizer:
        (dest / known.tokenizer).mkdir(parents=True, exist_ok=True)
        for file in sorted((source.config / known.tokenizer).iterdir()):
            if file.is_file():
                shutil.copyfile(file, dest / known.tokenizer / file.name)


def _save_part(
    source: Source,
    parts: Parts,
    known: Part,
    dest: Path,
    overlay: dict[str, Tensor],
    dtype: str,
    tokenizer: CLIPTokenizer | None,
) -> None:
    part = known.name
    shapes: Any = skeleton(source, part)
    expected = {known.file_key(k) for k in shapes.state_dict()}
    live = parts.loaded.get(part)
    new = _new_rows(live, overlay)
    if new is not None and len(tokenizer or ()) <= len(shapes.get_input_embeddings().weight):
        new = None  # written with the base's own tokenizer, which has no token for them
    if unknown := overlay.keys() - expected:
        raise RunError(
            f"{part} has no weight {sorted(unknown)[0]}",
            "an adapter cannot be written as a whole model: export it as an adapter",
        )
    dest.mkdir(parents=True, exist_ok=True)
    config = source.part_config(part)
    unchanged = not overlay and live is None
    if unchanged and (file := _copyable(source, known, expected, dtype)):
        shutil.copyfile(file, dest / f"{known.stem}.safetensors")
    else:
        state = _state(source, live, known, expected, overlay, torch_dtype(dtype))
        if known.tokenizer and (table := _table(known, shapes)):
            if new is not None:
                state[table] = torch.cat([state[table], new.to("cpu", torch_dtype(dtype))])
            # Added tokens make the table longer than the source's configuration says.
            config["vocab_size"] = len(state[table])
        save_weights(dest, known, state)
    # A stored dtype or origin would be wrong now, and loaders do without them.
    for name in ("dtype", "torch_dtype", "_name_or_path"):
        config.pop(name, None)
    write_json(dest / "config.json", config)


def _table(part: Part, shapes: Any) -> str:
    """Return what files call a text encoder's table of token embeddings; empty without one."""
    table = shapes.get_input_embeddings().weight
    return next((part.file_key(n) for n, p in shapes.named_parameters() if p is table), "")


def _new_rows(live: Module | None, overlay: dict[str, Tensor]) -> Tensor | None:
    """Return the rows of added tokens [n, dim], taken out of `overlay` or live; None without any.

    Files know one table alone: the rows go to its end, where the tokenizer's new ids point.
    """
    names = [name for name in overlay if name.endswith(f".{NEW_ROWS}")]
    rows = [overlay.pop(name) for name in names]
    if not rows and live is not None:
        rows = list(new_rows(live).values())
    return rows[0] if rows else None


def _copyable(source: Source, part: Part, expected: set[str], dtype: str) -> Path | None:
    """Return the source's weight file if it is already what would be written."""
    files = source.weight_files(part.name)
    suffix = files[0].suffix.lower()
    if source.single_file(part.name) or len(files) > 1 or suffix != ".safetensors":
        return None
    header = read_header(files[0])
    same = header.shapes.keys() == expected
    return files[0] if same and set(header.dtypes.values()) == {HEADER_NAMES[dtype]} else None


def _state(
    source: Source,
    module: Module | None,
    part: Part,
    expected: set[str],
    overlay: dict[str, Tensor],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Collect a part's tensors in `dtype`: from `overlay`, else live, else from the source.

    A live tensor that is no more than the source's, rounded to the run's dtype, is written from
    the source: a run in half precision does not cost the export its precision.
    """
    held: Mapping[str, Tensor] = {} if module is None else module.state_dict()
    live = {part.file_key(k): t for k, t in held.items()}
    rest = expected - overlay.keys()
    stored: dict[str, Tensor] = {}
    if any(k not in live or live[k].dtype not in (dtype, torch.float32) for k in rest):
        again = load_part(source, part.name, torch.float32, mapped=True)
        stored = {part.file_key(k): t for k, t in again.state_dict().items()}

    def pick(key: str) -> Tensor:
        if key in overlay:
            return overlay[key]
        if key not in live:
            return stored[key]
        now = live[key].cpu()
        if key in stored and now.shape == stored[key].shape:
            return stored[key] if torch.equal(stored[key].to(now.dtype), now) else now
        return now

    # Not `expected`: a set has no order, and the same model should give the same file.
    return {k: pick(k).detach().to("cpu", dtype).contiguous() for k in sorted(expected)}


def save_weights(dest: Path, part: Part, state: Mapping[str, Tensor]) -> None:
    """Write tensors as a part's safetensors file, in shards with an index beyond `MAX_SHARD`."""
    split = split_torch_state_dict_into_shards(
        dict(state),
        filename_pattern=f"{part.stem}{{suffix}}.safetensors",
        max_shard_size=MAX_SHARD,
    )
    for name, keys in split.filename_to_tensors.items():
        write_tensors(dest / name, {k: state[k] for k in keys}, {})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(dest / f"{part.stem}.safetensors.index.json", index)
