"""Cache files spoilt at random: built again, never used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth.engine.cache.store import ChunkStore
from dreambooth.engine.reporting import Quiet
from spoiling import fuzz
from spoilt_checkpoint import share

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Listening(Quiet):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        assert message.encode()
        self.warnings.append(message)


@pytest.fixture
def chunk(tmp_path: Path) -> Any:
    """A cache file of four rows, what it holds, and a function that reads it anew."""

    def build(indices: Any) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(indices[0])
        half = torch.randn(len(indices), 3, generator=rng).to(torch.bfloat16)
        return {"half": half, "mean": torch.randn(len(indices), 2, 2, generator=rng)}

    listening = Listening()

    def row(index: int) -> dict[str, torch.Tensor]:
        return ChunkStore("test", {}, 4, build, listening, None, tmp_path).row(index)

    good = {name: tensor.clone() for name, tensor in row(1).items()}
    [file] = tmp_path.rglob("chunk-*.safetensors")
    return SimpleNamespace(file=file, good=good, row=row, bytes=file.read_bytes(), said=listening)


SPOILT_CHUNKS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "a row short": lambda t: {name: tensor[:-1].clone() for name, tensor in t.items()},
    "rows too many": lambda t: {name: torch.cat([tensor, tensor]) for name, tensor in t.items()},
    "a name short": lambda t: {"mean": t["mean"]},
    "another name": lambda t: {"means": t["mean"], "half": t["half"]},
    "one more": lambda t: {**t, "more": t["mean"].clone()},
    "another shape": lambda t: {**t, "mean": t["mean"].reshape(4, 4)},
    "another type": lambda t: {**t, "mean": t["mean"].to(torch.float64)},
    "other values": lambda t: {**t, "mean": t["mean"] + 1},
    "rows exchanged": lambda t: {**t, "mean": t["mean"].flip(0)},
    "not finite": lambda t: {**t, "mean": t["mean"] * float("nan")},
    "no rows": lambda t: {name: torch.tensor(1.0) for name in t},
    "nothing": lambda t: {},
}  # fmt: skip


@pytest.mark.parametrize("change", SPOILT_CHUNKS.values(), ids=SPOILT_CHUNKS)
@pytest.mark.parametrize("keeps_metadata", [False, True])
def test_a_good_cache_file_of_something_else_is_built_again(
    chunk: Any, change: Any, keeps_metadata: bool
) -> None:
    with safe_open(chunk.file, "pt") as opened:
        metadata = opened.metadata() if keeps_metadata else None
    save_file(change(load_file(chunk.file)), chunk.file, metadata)
    assert same(chunk.row(1), chunk.good)
    assert chunk.file.name in chunk.said.warnings[0]
    assert chunk.file.read_bytes() == chunk.bytes
    assert same(chunk.row(1), chunk.good)
    assert len(chunk.said.warnings) == 1


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


@pytest.mark.parametrize("examples", [120, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_spoilt_cache_file_never_gives_other_rows(chunk: Any, examples: int) -> None:
    def check(changes: list[tuple[float, int]], kept: float) -> None:
        data = bytearray(chunk.bytes)
        for place, bit in changes:
            data[int(place * len(data))] ^= 1 << bit
        chunk.file.unlink()  # a new file: tensors may still be mapped from the old one
        chunk.file.write_bytes(data[: int(len(data) * min(1.0, 0.5 + kept))])
        assert same(chunk.row(1), chunk.good)

    flips = st.lists(st.tuples(share, st.integers(0, 7)), max_size=3)
    fuzz(examples, flips, st.sampled_from([0.2, 1.0, 1.0]), check=check)
