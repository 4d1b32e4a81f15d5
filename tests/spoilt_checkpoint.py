"""Spoiling a checkpoint's files: by chance, or by somebody who makes the checksums right again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dreambooth.engine.checkpoints.files import CHECKSUMS, STATE, file_hash
from spoiling import Edit, edits, spoil

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = "step-000002", "step-000004"
FILES = [CHECKSUMS, STATE, "ema.safetensors", "optimizer.safetensors", "trainable.safetensors"]
DEEP = '{"a":' * 200 + "1" + "}" * 200
TEXTS = [
    "", "{", "[]", "null", "1", '"x"', "[" * 50_000, "9" * 5000, DEEP, "{}", '{"": "0"}',
    '{"../step-000002/state.json": "0"}', '{"/etc/passwd": "0"}', '{"\\ud800": "0"}',
    '{"a\\u0000b": "0"}', '{".": "0"}',
]  # fmt: skip
Change = tuple[str, str, float, Any]
pick = st.sampled_from(FILES)
share = st.floats(0, 1, exclude_max=True)
change = st.one_of(
    st.tuples(st.just("flip"), pick, share, st.integers(0, 7)),
    st.tuples(st.just("cut"), pick, share, st.none()),
    st.tuples(st.just("delete"), pick, share, st.none()),
    st.tuples(st.just("rename"), pick, share, st.sampled_from([*FILES, "x.safetensors", "x"])),
    st.tuples(st.just("bytes"), pick, share, st.binary(max_size=40)),
    st.tuples(st.just("link"), pick, share, st.none()),
    st.tuples(st.just("folder"), pick, share, st.none()),
    st.tuples(st.just("extra"), st.sampled_from(["y.json", "y.txt", ".z"]), share, st.none()),
    st.tuples(st.just("json"), st.sampled_from([CHECKSUMS, STATE]), share, edits),
    st.tuples(
        st.just("text"), st.sampled_from([CHECKSUMS, STATE]), share, st.sampled_from(TEXTS)
    ),
    st.tuples(st.just("tensors"), st.sampled_from(FILES[2:]), share, st.sampled_from(
        ["drop", "rename", "reshape", "scalar", "int", "half", "empty", "more", "rows", "nan"])),
)  # fmt: skip


def apply(folder: Path, changes: list[Change], *, rehash: bool) -> None:
    """Spoil a checkpoint; `rehash` writes checksums that fit what lies there afterwards."""
    for how, name, place, what in changes:
        file = folder / name
        if how == "extra":
            file.write_bytes(b"x")
        elif not file.is_file() or file.is_symlink():
            continue
        elif how == "json":
            spoil_json(file, what)
        elif how == "tensors":
            spoil_tensors(file, place, what)
        else:
            spoil_file(file, how, place, what)
    if rehash:
        files = [f for f in folder.iterdir() if f.is_file() and f.name != CHECKSUMS]
        (folder / CHECKSUMS).unlink(missing_ok=True) if (folder / CHECKSUMS).is_file() else None
        if not (folder / CHECKSUMS).exists():
            sums = {f.name: file_hash(f) for f in files if f.suffix in {".json", ".safetensors"}}
            (folder / CHECKSUMS).write_text(json.dumps(sums))


def spoil_file(file: Path, how: str, place: float, what: Any) -> None:
    data = bytearray(file.read_bytes())
    at = int(place * len(data))
    if how == "rename":
        file.rename(file.with_name(what))
        return
    if how == "flip" and data:
        data[at] ^= 1 << what
    file.unlink()
    if how == "link":
        file.symlink_to(file.parent.parent / OLD / file.name)
    elif how == "folder":
        file.mkdir()
    elif how == "text":
        file.write_text(what)
    elif how != "delete":
        file.write_bytes(data[:at] if how == "cut" else what if how == "bytes" else data)


def spoil_json(file: Path, changes: list[Edit]) -> None:
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(data, dict):
        file.write_text(json.dumps(spoil(data, changes)))


def spoil_tensors(file: Path, place: float, how: str) -> None:
    """Write a good safetensors file with one tensor changed (or all gone)."""
    try:
        tensors = load_file(file)
    except Exception:  # spoilt already
        return
    if not tensors:
        return
    name = sorted(tensors)[int(place * len(tensors))]
    tensor = tensors.pop(name).clone()
    changed = {
        "rename": (name + "x", tensor),
        "reshape": (name, tensor.reshape(-1, 1)),
        "scalar": (name, torch.tensor(1.0)),
        "int": (name, tensor.to(torch.int32)),
        "half": (name, tensor.to(torch.float16)),
        "rows": (name, tensor.repeat(2, *[1] * (tensor.dim() - 1)) if tensor.dim() else tensor),
        "nan": (name, tensor.to(torch.float32) * float("nan")),
    }
    if how in changed:
        key, value = changed[how]
        tensors[key] = value.contiguous()
    elif how == "more":
        tensors |= {name: tensor, "unknown": tensor.clone()}
    save_file({} if how == "empty" else tensors, file)
