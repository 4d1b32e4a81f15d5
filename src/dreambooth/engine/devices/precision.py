"""Compute precision: types, autocast around forwards, the loss scaler."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Name = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Name, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Precision:
    """A resolved precision on a device."""

    name: Name
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """What frozen parts are held in."""
        return DTYPES[self.name]

    def autocast(self) -> AbstractContextManager[None]:
        """Run matrix products in the compute precision; float32 needs no autocast."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler: needed for float16, whose small gradients underflow."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def has_bf16_units(device: torch.device) -> bool:
    """Say whether a device multiplies bfloat16 in hardware (on CPUs: AVX-512 BF16 or AMX)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    known = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
