"""Which of torch's implementations of an optimizer step fits a set of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

# torch keeps these lists private and offers no public question; its optimizers ask here too.
from torch.utils._foreach_utils import (
    _get_foreach_kernels_supported_devices,
    _get_fused_kernels_supported_devices,
)

from dreambooth.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from dreambooth_plugins.optimizer.adam import Implementation


def choose(
    wanted: Implementation, devices: AbstractSet[str]
) -> Literal["fused", "foreach", "loop"]:
    """Return the implementation to use for parameters on these device types.

    Raises `RunError` where `fused` is asked for and one of the devices has no fused kernel.
    """
    fused = devices <= set(_get_fused_kernels_supported_devices())
    if wanted == "fused" and not fused:
        raise RunError(
            f"torch has no fused AdamW for {', '.join(sorted(devices))}",
            "use optimizer.implementation: auto",
        )
    if wanted != "auto":
        return wanted
    if fused:
        return "fused"
    return "foreach" if devices <= set(_get_foreach_kernels_supported_devices()) else "loop"
