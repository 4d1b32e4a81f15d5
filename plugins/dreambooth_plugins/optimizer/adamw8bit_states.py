"""bitsandbytes' AdamW8bit, tried on the device and strict about the state it takes back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.optim import AdamW8bit as Library

from dreambooth.errors import RunError
from dreambooth_plugins.optimizer.adam import BLOCK

if TYPE_CHECKING:
    from collections.abc import Mapping

CODES = 256
HINT = "`python -m bitsandbytes` says what it misses; optimizer: adamw needs nothing"


class StrictAdamW8bit(Library):  # type: ignore[misc]  # its types are not read
    """The library's optimizer; its own way of loading calls none of torch's hooks."""

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Load what fits the parameters; `ValueError` or `LookupError` for anything else."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, entry in state_dict["state"].items():
            check_entry(parameters[index], entry)
        super().load_state_dict(state_dict, move_to_device)


def open_adamw8bit(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """Build the optimizer with the library's `options`.

    `RunError` where the library cannot take a step on the device.
    """
    for device in {p.device for group in groups for p in group["params"]}:
        require_working(device)
    optimizer: torch.optim.Optimizer = StrictAdamW8bit(groups, **options)
    return optimizer


def require_working(device: torch.device) -> None:
    """Take one step of one block: the library alone knows for which devices it has kernels."""
    try:
        parameter = torch.nn.Parameter(torch.ones(BLOCK, device=device))
        parameter.grad = torch.ones_like(parameter)
        Library([parameter], lr=0.5, min_8bit_size=1).step()
        moved = bool((parameter < 1).all())
    except Exception as error:
        said = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise RunError(f"bitsandbytes cannot work on {device.type} here: {said}", HINT) from error
    if not moved:
        raise RunError(f"bitsandbytes takes no step on {device.type} here", HINT)


def check_entry(parameter: torch.Tensor, entry: Mapping[str, Any]) -> None:
    """Raise where an entry cannot be this parameter's: a kernel would read beyond its ends.

    Codes and moments have the parameter's shape, scales are one a block, tables 256 long.
    """
    blocks = math.ceil(parameter.numel() / BLOCK)
    wide = entry["state1"].dtype == torch.float32
    expected = {"state1": parameter.shape, "state2": parameter.shape}
    if not wide:
        expected |= {f"absmax{i}": torch.Size([blocks]) for i in (1, 2)}
        expected |= {f"qmap{i}": torch.Size([CODES]) for i in (1, 2)}
    if set(entry) != {"step", *expected}:
        raise ValueError(f"the 8-bit optimizer's state has other entries: {sorted(entry)}")
    if not isinstance(entry["step"], int) or not 0 < entry["step"] < 2**31:
        raise ValueError(f"the 8-bit optimizer's count of steps is {entry['step']!r:.40}")
    for key, shape in expected.items():
        dtype = torch.uint8 if key.startswith("state") and not wide else torch.float32
        if entry[key].shape != shape or entry[key].dtype != dtype:
            found = f"{entry[key].dtype} of {list(entry[key].shape)}"
            raise ValueError(f"{key} holds {found} instead of {dtype} of {list(shape)}")
