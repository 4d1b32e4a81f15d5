"""Taking a checkpoint back: content that no run of this job wrote is refused in words.

Checksums show what changed by itself; they say nothing of a file that somebody else wrote.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.engine.watching.failures import out_of_memory
from dreambooth.errors import RunError, UserError
from dreambooth.runs.checkpoints import reason, step_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from torch.optim import Optimizer

    from dreambooth.engine.checkpoints.files import Checkpoint
    from dreambooth.engine.state import TrainState
    from dreambooth.engine.step import Meter

LIKE_PARAMETER = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"})
"""Entries of optimizer state that have the parameter's shape, as torch names them."""


@contextmanager
def taking_back(found: Checkpoint) -> Iterator[None]:
    """Turn whatever foreign content makes the block (plugins' code too) raise into `RunError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        raise RunError(
            f"checkpoint {found.folder} holds something else than this run would write "
            f"({type(error).__name__}: {reason(error)})",
            "move that folder away: the run then goes on from the checkpoint before it",
        ) from error


def restore(state: TrainState, meter: Meter, found: Checkpoint) -> None:
    """Load a checkpoint; `RunError` where its content is not this run's."""
    with taking_back(found):
        state.load(found.tensors, found.numbers["train"])
        meter.load(found.numbers["meter"])
        if state.step != step_of(found.folder):
            raise ValueError(f"it is of step {state.step}")


def check_shapes(expected: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` unless every expected tensor was saved: copying would broadcast."""
    for name, tensor in expected.items():
        found = saved[name]
        if found.shape != tensor.shape or not found.is_floating_point():
            is_not = f"not floating-point numbers of {list(tensor.shape)}"
            raise ValueError(f"{name} holds {found.dtype} of {list(found.shape)}, {is_not}")


def check_optimizer(
    optimizer: Optimizer,
    parameters: Mapping[str, Tensor],
    entries: Mapping[str, Mapping[str, Any]],
    updates: int,
) -> None:
    """Raise `LookupError` or `ValueError` where optimizer state cannot be these parameters'.

    Which entries there are is the optimizer's affair, but parameters of one rank have the same
    ones (quantised ones and others apart), moments have their parameter's shape, and after
    `updates` there are some.
    """
    alike: dict[tuple[int, bool], set[str]] = {}
    for name, entry in entries.items():
        parameter = parameters[name]
        moments = {
            key: entry[key] for key in LIKE_PARAMETER & entry.keys() if entry[key] is not None
        }
        check_shapes(dict.fromkeys(moments, parameter), moments)
        if "step" in entry:
            float(entry["step"])
        quantised = any(getattr(value, "dtype", None) == torch.uint8 for value in entry.values())
        if alike.setdefault((parameter.dim(), quantised), set(entry)) != set(entry):
            raise ValueError(f"the optimizer's state of {name} has other entries than its like")
    if updates > 0 and not entries and "betas" in optimizer.defaults:
        raise ValueError("the optimizer's moments are missing")
