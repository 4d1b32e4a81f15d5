"""Weights that leave the memory-mapped file they were read from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth_plugins.model.folder import memory_map
from dreambooth_plugins.model.folder.loading import load_part, stored_dtype
from sd_folder import Source


def resident(path: Path) -> int:
    """Return the kB of a file that count as this process's memory (from /proc/self/smaps)."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            ours = line.endswith(f" {path}")
        elif first == "Rss:" and ours:
            total += int(line.split()[1])
    return total


class Weights(torch.nn.Module):
    """Parameters and a buffer as a loader leaves them."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(name, tensor)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tensors = {f"w{i}": torch.randn(256, 1024) for i in range(8)}
    path = tmp_path.resolve() / "weights.safetensors"
    save_file({**tensors, "places": torch.arange(7)}, path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_the_file_are_let_go_and_can_be_read_again(file: Path) -> None:
    mapped = load_file(file)
    before = {name: tensor.clone() for name, tensor in mapped.items()}
    assert resident(file) > 4000
    memory_map.let_go(frozenset({str(file)}))
    assert resident(file) == 0
    assert all(torch.equal(mapped[name], tensor) for name, tensor in before.items())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_little_of_the_file_is_held_while_it_is_copied(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(file)
    module = Weights(tensors)
    held: list[int] = []
    drop = memory_map.let_go

    def watched(names: frozenset[str]) -> None:
        held.append(resident(file))
        drop(names)

    monkeypatch.setattr(memory_map, "PIECE", 2**20)
    monkeypatch.setattr(memory_map, "let_go", watched)
    memory_map.own_memory(module, [file], torch.float32)
    assert len(held) == 9  # each tensor is a piece; once more at the end
    assert max(held) < 2 * 1024 + 512
    assert all(torch.equal(module.get_parameter(f"w{i}"), tensors[f"w{i}"]) for i in range(8))


def test_floating_weights_are_cast_as_torch_casts_them(file: Path) -> None:
    tensors = load_file(file)
    module = Weights(dict(tensors))
    memory_map.own_memory(module, [file], torch.bfloat16)
    assert torch.equal(module.get_parameter("w3"), tensors["w3"].to(torch.bfloat16))
    assert module.get_buffer("places").dtype == torch.int64


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_is_the_same_in_whatever_it_is_read(tiny_model: Path, part: str) -> None:
    full = load_part(Source(tiny_model), part, torch.float32, mapped=True).state_dict()
    half = load_part(Source(tiny_model), part, torch.bfloat16).state_dict()
    assert half.keys() == full.keys()
    for name, tensor in full.items():
        wanted = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        assert torch.equal(half[name], wanted), name


def test_files_are_read_in_the_one_type_they_have(file: Path, tmp_path: Path) -> None:
    half, mixed = tmp_path / "half.safetensors", tmp_path / "mixed.safetensors"
    save_file({"a": torch.ones(2, dtype=torch.float16), "b": torch.arange(3)}, half)
    save_file({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.bfloat16)}, mixed)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(file.read_bytes()[:-4])
    assert stored_dtype([file]) == torch.float32
    assert stored_dtype([half]) == torch.float16
    for unclear in ([mixed], [file, half], [damaged], [tmp_path / "weights.bin"]):
        assert stored_dtype(unclear) is None
