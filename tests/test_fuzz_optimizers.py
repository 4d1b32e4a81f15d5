"""Optimizer state spoilt at random under good checksums: refused in words, or used.

Kernels read as many numbers as the parameter has, whatever the state holds: what does not fit must
be refused before a step, and never ends in a traceback.
"""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import strategies as st

from dreambooth.engine.checkpoints import files
from dreambooth.engine.checkpoints.files import STATE, newest
from dreambooth.engine.checkpoints.restoring import restore
from dreambooth.engine.state import TrainState
from dreambooth.engine.step import Meter
from dreambooth.errors import UserError
from dreambooth_plugins.optimizer import AdamW, AdamW8bit, Prodigy
from spoiling import edits, fuzz
from spoilt_checkpoint import Change, apply

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth import Optimizer

SHAPES = {"unet.a": (20, 30), "unet.b": (20, 20), "unet.c": (7,), "unet.d": (5,)}
KINDS = {"adamw": AdamW(), "adamw8bit": AdamW8bit(min_8bit_size=500), "prodigy": Prodigy(d0=1e-3)}
FILE = "optimizer.safetensors"
TENSORS = ["drop", "rename", "reshape", "scalar", "int", "half", "empty", "more", "rows", "nan"]
share = st.floats(0, 1, exclude_max=True)
change = st.one_of(
    st.tuples(st.just("json"), st.just(STATE), share, edits),
    st.tuples(st.just("tensors"), st.just(FILE), share, st.sampled_from(TENSORS)),
)


def words(error: UserError) -> None:
    assert error.message.encode()
    assert error.hint


def open_state(config: Optimizer) -> TrainState:
    parameters = {name: torch.nn.Parameter(torch.ones(s)) for name, s in SHAPES.items()}
    groups = [{"params": [p]} for p in parameters.values()]
    optimizer = config.build(groups)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(parameters, optimizer, scaler, [config.lr] * len(groups))


def train(state: TrainState, steps: int) -> None:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        for parameter in state.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        state.optimizer.step()
        state.step += 1


@pytest.mark.parametrize("examples", [150, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_foreign_optimizer_state_is_refused_in_words_or_trains(
    config: Optimizer, examples: int, tmp_path: Path
) -> None:
    state = open_state(config)
    train(state, 3)
    numbers = {"train": state.numbers(), "meter": Meter().state()}
    good = files.save(tmp_path / "good", 3, state.tensors(), numbers, lambda there: [])
    folder = tmp_path / "spoilt"
    seen: Counter[str] = Counter()

    def check(changes: list[Change]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder / good.name)
        apply(folder / good.name, changes, rehash=True)
        found = newest(folder, lambda said: None)
        if found is None:  # no longer JSON, which is named as damage
            seen["damaged"] += 1
            return
        fresh = open_state(config)
        try:
            restore(fresh, Meter(), found)
        except UserError as error:
            words(error)
            seen["refused"] += 1
        else:
            train(fresh, 1)
            seen["trains"] += 1

    check([])
    assert seen == {"trains": 1}
    fuzz(examples, st.lists(change, min_size=1, max_size=2), check=check)
    assert min(seen["refused"], seen["trains"]) > examples // 30, seen
