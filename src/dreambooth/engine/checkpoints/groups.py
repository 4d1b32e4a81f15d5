"""What an optimizer itself keeps in its parameter groups: Prodigy's step size, for example.

torch's optimizers only read their groups. Others count and estimate there, and a run that goes on
from a checkpoint without those numbers starts the estimate anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    Groups = Sequence[dict[str, Any]]

OURS = frozenset({"params", "lr"})
"""The engine says what trains, and sets the rate before each step."""


def options(optimizer: Optimizer) -> Groups:
    """Return a copy of the groups without what is the engine's."""
    return [{k: v for k, v in g.items() if k not in OURS} for g in optimizer.param_groups]


def changes(optimizer: Optimizer, built: Groups) -> Groups:
    """Return the numbers the optimizer has changed or added since its groups were as `built`.

    Empty where it changed none. `PluginError` for anything that JSON would not hold exactly.
    """
    changed = []
    for now, before in zip(options(optimizer), built, strict=True):
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


def restored(optimizer: Optimizer, built: Groups, saved: Any) -> list[dict[str, Any]]:
    """Return the groups to load: as they were built, with the numbers of a checkpoint.

    `saved` is what `changes` returned. Raises where it cannot be: a wrong number of groups, an
    entry of the engine's, or something else than numbers where numbers were.
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
