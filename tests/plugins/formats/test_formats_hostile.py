"""LoRA files that somebody damaged or made up: refused in words by `validate`, or by the plan."""

from __future__ import annotations

import json
import os
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import JobError
from dreambooth_plugins.formats.embedding import read_shape
from dreambooth_plugins.formats.lora.contents import read_contents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = f"lora_unet_{AT.removeprefix('unet.').replace('.', '_')}"
MODULE = AT.removeprefix("unet.")


def peft(**changes: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a good LoRA of the tiny model, some of them changed."""
    pair = {f"{AT}.lora_A.weight": torch.ones(4, 32), f"{AT}.lora_B.weight": torch.ones(32, 4)}
    return pair | {f"{AT}.{n.replace('_weight', '.weight')}": t for n, t in changes.items()}


def kohya(alpha: torch.Tensor | None = None, rank: int = 4) -> dict[str, torch.Tensor]:
    pair = {f"{KOHYA}.lora_down.weight": torch.ones(rank, 32),
            f"{KOHYA}.lora_up.weight": torch.ones(32, rank)}  # fmt: skip
    return pair if alpha is None else {**pair, f"{KOHYA}.alpha": alpha}


def about(**options: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in options.items()})}


def refused(path: Path, *said: str) -> None:
    began = time.monotonic()
    with pytest.raises(JobError) as caught:
        read_contents(path)
    assert time.monotonic() - began < 2.0
    assert str(path.parent) in caught.value.message
    for words in said:
        assert words in caught.value.message + caught.value.hint
    assert caught.value.hint


HOSTILE: dict[str, tuple[dict[str, torch.Tensor], dict[str, str], str]] = {
    "rank 0": (kohya(rank=0), {}, "has rank 0"),
    "rank beyond measure": (kohya(rank=5000), {}, "has rank 5000"),
    "two ranks": (peft(lora_B_weight=torch.ones(32, 5)), {}, "the ranks 4 and 5"),
    "a factor that is a number": (peft(lora_B_weight=torch.tensor(1.0)), {}, "no layer takes"),
    "a factor with three sides": (peft(lora_A_weight=torch.ones(4, 32, 1)), {}, "no layer takes"),
    "an empty factor": (peft(lora_A_weight=torch.ones(4, 0)), {}, "no layer takes"),
    "whole numbers": (peft(lora_A_weight=torch.ones(4, 32).int()), {}, "not floating-point"),
    "a vector alpha": (kohya(torch.ones(4)), {}, "not one"),
    "alpha 0": (kohya(torch.tensor(0.0)), {}, "is 0.0"),
    "alpha NaN": (kohya(torch.tensor(float("nan"))), {}, "is NaN"),
    "alpha infinite": (kohya(torch.tensor(float("inf")).half()), {}, "is Infinity"),
    "the same twice": ({**peft(), f"{AT}.lora.down.weight": torch.ones(4, 32)}, {}, "are one"),
    "metadata that is a list": (peft(), {"lora_adapter_metadata": "[]"}, "no mapping"),
    "metadata without end": (peft(), {"lora_adapter_metadata": "[" * 99999}, "no JSON"),
    "alpha of text": (peft(), about(lora_alpha="x"), "lora_alpha is"),
    "alpha of nothing": (peft(), about(lora_alpha=None), "lora_alpha is null"),
    "patterns that are none": (peft(), about(alpha_pattern=[1]), "no mapping"),
    "a pattern's alpha is none": (peft(), about(alpha_pattern={"to_q": {}}), "is a mapping"),
    "an endless expression": (
        peft(), about(alpha_pattern={"((([a-z_.0-9])+)+)+!": 2}), "regular expressions cannot"
    ),
    "nothing": ({}, {}, "holds no tensors"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "metadata", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_makes_no_update_is_refused_by_its_header(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], said: str
) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata or None)
    refused(tmp_path / "a.safetensors", said)


def header_of(entries: Any, data: int = 1024) -> bytes:
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return struct.pack("<Q", len(text)) + text + bytes(data)


A, B = f"{AT}.lora_A.weight", f"{AT}.lora_B.weight"


def entry(begin: int = 0, end: int = 512, shape: Any = (4, 32), dtype: Any = "F32") -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS: dict[str, tuple[bytes, str]] = {
    "overlapping": (header_of({A: entry(), B: entry(256, 768)}, 768), "lies over"),
    "a gap": (header_of({A: entry(), B: entry(600, 1112)}), "lies over another tensor, or leaves"),
    "a huge shape": (header_of({A: entry(shape=[2**40, 2**40])}, 512), "other bytes"),
    "sides below zero": (header_of({A: entry(shape=[-4, -32])}), "shape of"),
    "a side that is true": (header_of({A: entry(0, 128, [True, 32]), B: entry()}), "shape of"),
    "a side of a fraction": (header_of({A: entry(shape=[4.0, 32])}), "shape of"),
    "another type": (header_of({A: entry(dtype="F31")}), "type of"),
    "a type that is a list": (header_of({A: entry(dtype=["F32"])}), "type of"),
    "no place": (header_of({A: {"dtype": "F32", "shape": [4, 32]}}), "where"),
    "places below zero": (header_of({A: entry(-512, 0)}), "where"),
    "an entry that is text": (header_of({A: "x"}), "does not say what"),
    "metadata of numbers": (header_of({"__metadata__": {"a": 1}}), "must be texts"),
    "metadata that is a list": (header_of({"__metadata__": ["a"]}), "must be texts"),
    "a list": (header_of([1]), "not a safetensors file"),
    "deep": (header_of(b'{"a":' * 99999), "nested too deep"),
    "a number without end": (header_of(b'{"a": ' + b"9" * 9999 + b"}"), "cannot be read"),
    "no UTF-8": (header_of(b'{"\xff": 1}'), "cannot be read"),
    "a name without end": (header_of({"a" * 99999: entry()}), "99999 characters"),
    "a length beyond the file": (b"\xff" * 8 + b"{}", "cut short"),
    "bytes too many": (header_of({A: entry(), B: entry(512, 1024)}, 1025), "announces 1024"),
    "nothing": (b"", "cut short"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_does_not_add_up_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    refused(path, said)
    with pytest.raises(JobError):
        read_shape(path)


def test_a_header_may_not_be_large(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 90_000_000) + b"{")
    os.truncate(path, 1 << 40)
    refused(path, "more than 32 MiB")


@pytest.mark.parametrize("place", ["a.safetensors", "lora/x.safetensors", "adapter_config.json"])
def test_pipes_and_devices_are_not_opened(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    if path.suffix == ".json":
        save_file(peft(), tmp_path / "a.safetensors")
        refused(tmp_path / "a.safetensors", "not a regular file")
        return
    with pytest.raises(JobError):
        read_contents(path)
    with pytest.raises(JobError):
        read_contents(path.parent)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(JobError):
        read_contents(path.parent)


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [("attn1.to_q", 2.0), (f"^{MODULE}$", 2.0), (MODULE.replace(".", "\\."), 2.0), ("to_q", 2.0),
     ("o_q", 6.0), ("attn1.to_k", 6.0), ("", 6.0)],
)  # fmt: skip
def test_patterns_are_names_of_modules_or_ends_of_them(
    tmp_path: Path, pattern: str, alpha: float
) -> None:
    metadata = about(
        lora_alpha=6, alpha_pattern={"x": 3, pattern: 2, MODULE: 2 if alpha == 2 else 6}
    )
    save_file(peft(), tmp_path / "a.safetensors", metadata)
    contents = read_contents(tmp_path / "a.safetensors")
    assert contents.scale("unet", MODULE, 4) == alpha / 4


def test_a_hundred_thousand_patterns_cost_little(tmp_path: Path) -> None:
    metadata = about(alpha_pattern={f"x{i}": 1 for i in range(100_000)})
    save_file(peft(), tmp_path / "a.safetensors", metadata)
    began = time.process_time()
    contents = read_contents(tmp_path / "a.safetensors")
    assert [contents.scale("unet", MODULE, 4) for _ in range(999)] == [2.0] * 999
    assert time.process_time() - began < 2.0


def magnitudes(shape: tuple[int, ...]) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {**peft(), f"{AT}.lora_magnitude_vector": torch.ones(shape)}


UNFIT: dict[str, tuple[dict[str, torch.Tensor], str, str]] = {
    "an embedding": (
        {"text_encoder.embeddings.token_embedding.lora_A.weight": torch.ones(4, 32),
         "text_encoder.embeddings.token_embedding.lora_B.weight": torch.ones(1514, 4)},
        "lora", "no layer that takes"),
    "a norm": (
        {"unet.conv_norm_out.lora_A.weight": torch.ones(4, 32),
         "unet.conv_norm_out.lora_B.weight": torch.ones(32, 4)}, "lora", "no layer that takes"),
    "a parameter": (
        {"unet.conv_in.weight.lora_A.weight": torch.ones(4, 32),
         "unet.conv_in.weight.lora_B.weight": torch.ones(32, 4)}, "lora", "has no module"),
    "NaN": (peft(lora_A_weight=torch.full((4, 32), float("nan"))), "lora", "NaN or infinity"),
    "magnitudes that copying would spread": (
        {**peft(), f"{AT}.lora_magnitude_vector": torch.ones(1)}, "dora", "magnitudes [1]"),
    "a convolution's kernel": (
        {"unet.conv_in.lora_A.weight": torch.ones(4, 4, 3, 3),
         "unet.conv_in.lora_B.weight": torch.ones(32, 4, 3, 3)}, "lora", "takes [32, 4, 3, 3]"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "method", "said"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_the_model_is_told_by_the_plan(
    tmp_path: Path, small_job: Any, tensors: dict[str, torch.Tensor], method: str, said: str
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    parts = sorted({name.split(".")[0] for name in tensors})
    freezing = {"kind": "adapter", "init": tmp_path / "a.safetensors", "train": parts}
    job = small_job(freezing={**freezing, "method": method}, prior="none")
    with pytest.raises(JobError) as caught:
        make_plan(job, Quiet())
    assert said in caught.value.message
    assert caught.value.hint


def test_what_the_reader_takes_safetensors_takes_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({**peft(), "zero": torch.ones(0, 3), "number": torch.tensor(True)}, path)
    from dreambooth.files.headers import read_header

    header = read_header(path)
    with safe_open(path, "pt") as file:
        found = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}
    assert header.shapes == found


WORDS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "a number": ({"<my-dog>": torch.tensor(1.0)}, "not the rows of one word"),
    "no rows": ({"<my-dog>": torch.ones(0, 32)}, "0 rows of width 32"),
    "rows without end": ({"<my-dog>": torch.ones(999, 1)}, "999 rows of width 1"),
    "whole numbers": ({"<my-dog>": torch.ones(1, 32).int()}, "I32"),
}


@pytest.mark.parametrize(("tensors", "said"), WORDS.values(), ids=WORDS)
def test_a_file_that_holds_no_word_is_told(
    tmp_path: Path, tensors: dict[str, torch.Tensor], said: str
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(JobError, match=said):
        read_shape(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("width", "said"), [(16, "it is for another kind"), (32, "damaged")])
def test_rows_of_another_width_or_of_no_numbers_are_told_by_the_plan(
    tmp_path: Path, small_job: Any, width: int, said: str
) -> None:
    save_file({"x": torch.full((1, width), float("nan"))}, tmp_path / "a.safetensors")
    job = small_job(
        subject={"identifier": "<my-dog>", "class_noun": "dog"}, prior="none",
        freezing={"kind": "token", "embedding": tmp_path / "a.safetensors"},
    )  # fmt: skip
    with pytest.raises(JobError) as caught:
        make_plan(job, Quiet())
    assert said in caught.value.hint
