"""A model folder whose files are damaged or of another kind: an error in words, or a model."""

from __future__ import annotations

import json
import shutil
import struct
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dreambooth.errors import JobError, RunError, UserError
from dreambooth_plugins.common.headers import read_header
from dreambooth_plugins.model.folder.loading import load_part, skeleton
from dreambooth_plugins.model.folder.tokenizer import load_tokenizer
from dreambooth_plugins.model.stable_diffusion import StableDiffusion
from sd_folder import PARTS, STEMS, Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEM = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
ODD: list[Any] = [None, "x", [], {}, -1, 0, [1], {"a": 1}, True, "../../x"]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def told(call: Callable[[], object]) -> None:
    """Call something; what it refuses must come with a message and a hint."""
    try:
        call()
    except UserError as error:
        words(error)


def words(error: UserError) -> None:
    assert error.message.encode()
    assert error.hint


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", "text_encoder/config.json", "vae/config.json",
     "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"],
)  # fmt: skip
def test_odd_values_in_a_configuration_are_told_in_words(folder: Path, name: str) -> None:
    file, part = folder / name, name.split("/", maxsplit=1)[0]
    good = json.loads(file.read_text())
    values = cycle(ODD)
    for key in [*good, "quantization_config", "auto_map", "_class_name"]:
        for _ in range(3):
            file.write_text(json.dumps({**good, key: next(values)}))
            told(StableDiffusion(source=str(folder)).describe)
            if part in PARTS:
                told(lambda: skeleton(Source(folder), part))
            if part == "tokenizer":
                told(lambda: load_tokenizer(Source(folder), "text_encoder"))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '{"a": \ud800}', "9" * 9999]
)
def test_a_configuration_that_is_no_json_object_is_named(folder: Path, text: str) -> None:
    file = folder / "unet/config.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(JobError, match=r"config\.json") as caught:
        StableDiffusion(source=str(folder)).describe()
    words(caught.value)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "content",
    [b"", b"garbage" * 99, b"\xff" * 8 + b"{}", None],
    ids=["empty", "text", "head", "cut"],
)
def test_damaged_weights_are_named(folder: Path, part: str, content: bytes | None) -> None:
    file = folder / part / f"{STEMS[part]}.safetensors"
    file.write_bytes(file.read_bytes()[:-5] if content is None else content)
    with pytest.raises(RunError, match=f"cannot be read as {part}") as caught:
        load_part(Source(folder), part, torch.float32)
    assert file.name in caught.value.message
    words(caught.value)


@pytest.mark.parametrize(
    "header",
    [[], {}, {"a": 1}, {"a": {"dtype": "F32"}}, {"a": {"dtype": "F32", "shape": 1}}, "x",
     {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["a", {}]}}, {"__metadata__": 1}],
)  # fmt: skip
def test_an_odd_header_of_a_single_file_is_told_in_words(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    told(lambda: read_header(file))
    told(StableDiffusion(source=str(file)).describe)


def test_shards_are_the_files_their_index_names(folder: Path) -> None:
    """What diffusers reads is what was checked and hashed, also beside a whole file."""
    from safetensors.torch import load_file, save_file

    inside = folder / "unet"
    whole = inside / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for name, some in parts.items():
        save_file({n: tensors[n] * 2 for n in some}, inside / name)
    index = {"metadata": {}, "weight_map": {n: name for name, some in parts.items() for n in some}}
    (inside / f"{whole.name}.index.json").write_text(json.dumps(index))
    source = Source(folder)
    assert [file.name for file in source.weight_files("unet")] == list(parts)
    loaded = load_part(source, "unet", torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensors[name] * 2) for name in names)
    (inside / "b.safetensors").unlink()
    with pytest.raises(JobError, match=r"names b\.safetensors, which is not there"):
        source.weight_files("unet")
