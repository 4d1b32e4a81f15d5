"""What an optimizer keeps, to a checkpoint and back: numbers in its groups, moments by parameter.

torch's optimizers only read their groups. Others count and estimate there (Prodigy its step size),
and a run that goes on from a checkpoint without those numbers starts the estimate anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dreambooth.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    Groups = Sequence[dict[str, Any]]

OURS = frozenset({"params", "lr"})
"""The engine says what trains, and sets the rate before each step."""
LIKE_PARAMETER = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"})
"""Entries of optimizer state that have the parameter's shape, as torch names them."""


def group_options(optimizer: Optimizer) -> Groups:
    """Return a copy of the groups without what is the engine's."""
    return [{k: v for k, v in g.items() if k not in OURS} for g in optimizer.param_groups]


def group_changes(optimizer: Optimizer, built: Groups) -> Groups:
    """Return the numbers the optimizer has changed or added since its groups were as `built`.

    Empty where it changed none. `PluginError` for anything that JSON would not hold exactly.
    """
    changed = []
    for now, before in zip(group_options(optimizer), built, strict=True):
        new = {k: v for k, v in now.items() if k not in before or is_new(before[k], v)}
        for key, value in new.items():
            if not is_number(value):
                raise PluginError(
                    f"the optimizer keeps {key!r}, a {type(value).__name__}, in its parameter "
                    "groups, where checkpoints keep numbers alone",
                    "tensors belong into the optimizer's state of a parameter",
                )
        changed.append(new)
    return changed if any(changed) else []


def is_number(value: Any) -> bool:
    """Say whether it counts or measures something; a flag is an option."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_new(before: Any, now: Any) -> bool:
    """Say whether a group's entry is to be kept; a tensor may have changed in place."""
    return hasattr(now, "dtype") or type(now) is not type(before) or bool(now != before)


def restored_groups(optimizer: Optimizer, built: Groups, saved: Any) -> list[dict[str, Any]]:
    """Return the groups to load: as they were built, with the numbers of a checkpoint.

    `saved` is what `group_changes` returned. Raises where it cannot be: a wrong number of groups,
    an entry of the engine's, or something else than numbers where numbers were.
    """
    if not isinstance(saved, list) or len(saved) not in {0, len(built)}:
        raise ValueError(f"it has numbers of {saved!r:.40} for {len(built)} parameter groups")
    for new, before in zip(saved, built, strict=False):
        for key, value in dict(new).items():
            if key in OURS or not is_number(before.get(key, 0)):
                raise ValueError(f"an optimizer does not change {key!r} of its groups")
            if not is_number(value):
                raise TypeError(f"{key!r} of a parameter group is {value!r:.40}")
            float(value)  # an integer that no float holds would overflow in the first step
    groups = optimizer.state_dict()["param_groups"]
    return [
        {**before, **{key: group[key] for key in OURS}, **new}
        for group, before, new in zip(groups, built, saved or [{}] * len(built), strict=True)
    ]


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
