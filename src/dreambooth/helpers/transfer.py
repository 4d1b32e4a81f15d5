"""Copies from the host to the device that the host does not wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PINNED_FOR = {"cuda", "xpu"}
"""Device types that read page-locked host memory by themselves."""


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`; the host goes on before the copy is made.

    From pageable memory `non_blocking` is a promise torch cannot keep: the copy goes through a
    small buffer and waits for all the work before it. torch keeps pinned memory for the next
    copy, and does not give it away before this one is done.
    """
    if tensor.device == device or tensor.device.type != "cpu" or device.type not in PINNED_FOR:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
