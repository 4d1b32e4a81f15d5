"""How jobs and files name the types of numbers that weights are stored in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

Dtype = Literal["fp32", "fp16", "bf16"]
"""Precision of stored weights."""
HEADER_NAMES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""What the header of a .safetensors file calls them."""


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's type of that name, a job's or a header's; `KeyError` for any other."""
    import torch

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return {**types, **{HEADER_NAMES[n]: dtype for n, dtype in types.items()}}[name]


def dtype_of(module: Module) -> torch.dtype:
    """Return the type a network computes in: its first weight's.

    diffusers' own `dtype` looks through all modules first, which a step of a small network feels.
    """
    return next(module.parameters()).dtype
