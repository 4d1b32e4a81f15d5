"""Compute precision: what `auto` means on this hardware, and autocast around forward passes."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

Name = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Name, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
MARGIN = 1.15
"""bfloat16 must be this much faster on a CPU to be worth its rounding."""


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


def cpu_has_bf16_units() -> bool:
    """Say whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def choose(
    wanted: str,
    device: torch.device,
    time_step: Callable[[Precision], float] | None = None,
) -> Precision:
    """Resolve a job's precision on `device`.

    `auto` is bfloat16 on GPUs that have it, else float16 on CUDA, else float32. On a CPU with
    bfloat16 units small networks are slower in bfloat16 and large ones faster, so `time_step`
    (seconds of one real step in a given precision) decides; CPUs without them take float32.
    """
    for name in DTYPES:
        if wanted == name:
            return Precision(name, device)
    if device.type == "cuda":
        return Precision("bf16" if torch.cuda.is_bf16_supported() else "fp16", device)
    if device.type == "cpu" and cpu_has_bf16_units() and time_step is not None:
        full, half = Precision("fp32", device), Precision("bf16", device)
        return half if time_step(full) > MARGIN * time_step(half) else full
    return Precision("fp32", device)


def time_matmuls(precision: Precision, channels: int = 320, side: int = 32) -> float:
    """Time a convolution and a matrix product, forward and backward, at a UNet's typical size.

    Median seconds of five, after one warm-up.
    """
    x = torch.ones(2, channels, side, side, requires_grad=True)
    kernel = torch.full((channels, channels, 3, 3), 1e-3, requires_grad=True)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        with precision.autocast():
            y = torch.nn.functional.conv2d(x, kernel, padding=1)
            rows = y.flatten(2).transpose(1, 2)
            (rows @ rows.transpose(1, 2)).float().mean().backward()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
