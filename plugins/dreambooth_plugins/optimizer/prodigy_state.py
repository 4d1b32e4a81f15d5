"""prodigyopt's Prodigy, strict about the state it takes back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prodigyopt import Prodigy as Library

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer as TorchOptimizer

COUNTED = frozenset({"k", "d", "d_max", "d_hat", "d_numerator", "d_denom"})
"""What the library writes into the parameter groups."""


def open_prodigy(
    groups: list[dict[str, Any]], *, weight_decay: float, **options: Any
) -> TorchOptimizer:
    """Build the optimizer with the library's `options`."""
    # The library prints a line where its default decays; groups of their own are quiet.
    decaying = [{"weight_decay": weight_decay, **group} for group in groups]
    optimizer: TorchOptimizer = Library(decaying, weight_decay=0.0, **options)
    optimizer.register_load_state_dict_pre_hook(check)
    return optimizer


def check(optimizer: TorchOptimizer, state_dict: dict[str, Any]) -> None:
    """Raise where state cannot be this optimizer's: options changed, numbers or tensors missing."""
    entries = state_dict["state"]
    taken = [entry["step"] for entry in entries.values()]
    if not all(isinstance(step, int) and step > 0 for step in taken):
        raise ValueError("Prodigy's counts of steps are no whole numbers")
    groups = zip(optimizer.param_groups, state_dict["param_groups"], strict=True)
    for now, saved in groups:
        fixed = [k for k in now if k not in COUNTED | {"params", "lr"} and now[k] != saved[k]]
        if fixed:
            raise ValueError(f"Prodigy does not change its {fixed[0]}")
        check_counted(saved, max(taken, default=0))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    momentum = {"exp_avg"} if now["betas"][0] else set()
    for index, entry in entries.items():
        if set(entry) != {"step", "s", "p0", "exp_avg_sq", *momentum}:
            raise ValueError(f"Prodigy's state has other entries: {sorted(entry)}")
        check_slices(parameters[index].flatten()[:: now["slice_p"]], entry)


def check_counted(group: dict[str, Any], steps: int) -> None:
    """Raise unless a group's numbers are those of at least `steps` steps."""
    if not isinstance(group["k"], int) or not steps <= group["k"] < 2**31:
        raise ValueError(f"Prodigy has counted {group['k']!r:.40} of {steps} steps")
    d, highest = float(group["d"]), float(group["d_max"])
    if not 0 < group["d0"] <= d <= highest < math.inf or not math.isfinite(group["d_numerator"]):
        raise ValueError(f"Prodigy's estimate is {d:g}, between {group['d0']:g} and {highest:g}")


def check_slices(sliced: Tensor, entry: dict[str, Any]) -> None:
    """Raise unless s has the slice's shape, and x_0 it too or that of a single zero."""
    for key, shapes in (("s", {sliced.shape}), ("p0", {sliced.shape, sliced.shape[:0]})):
        if entry[key].shape not in shapes or not entry[key].is_floating_point():
            raise ValueError(f"Prodigy's {key} holds {list(entry[key].shape)}")
