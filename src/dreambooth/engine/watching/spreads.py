"""How the weights that train are spread, by part of the model: histograms for trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dreambooth.interfaces import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

BUCKETS = 64


def spread_by_part(parameters: Mapping[str, Tensor]) -> dict[str, Histogram]:
    """Return `weights/<part>` -> histogram of parameters by qualified name (`unet.conv_in...`)."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in parameters.items():
        parts.setdefault(name.split(".", 1)[0], []).append(parameter)
    return {f"weights/{part}": histogram(tensors) for part, tensors in parts.items()}


def histogram(tensors: Sequence[Tensor]) -> Histogram:
    """Count the numbers of tensors in `BUCKETS` equal buckets, one tensor at a time on the CPU."""
    edges = torch.stack([torch.stack(t.detach().aminmax()).float().cpu() for t in tensors])
    low, high = float(edges[:, 0].min()), float(edges[:, 1].max())
    if low == high:  # a bucket has a width
        low, high = low - 0.5, high + 0.5
    counts = torch.zeros(BUCKETS, dtype=torch.float64)
    total = squares = 0.0
    for tensor in tensors:
        plain = tensor.detach().float().cpu().flatten()
        counts += torch.histc(plain, BUCKETS, low, high)
        total += float(plain.double().sum())
        squares += float(plain.double().square().sum())
    limits = torch.linspace(low, high, BUCKETS + 1, dtype=torch.float64)
    return Histogram(limits.tolist(), counts.tolist(), total, squares)
