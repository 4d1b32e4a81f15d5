"""The recipe's optimiser: orthogonalised momentum for weight matrices, AdamW for the rest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

_EDGES = ("conv_in", "conv_out", "embed", "quant_conv", "projection", "logit")
"""First, last and table-like layers keep AdamW."""


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest orthogonal matrix of `matrix` [m, n].

    Five Newton-Schulz steps with the quintic coefficients of Jordan et al., "Muon: An optimizer
    for hidden layers in neural networks" (2024); singular values end within about 0.7 .. 1.2.
    Every iterate is a polynomial of the first Gram matrix times `matrix`, so the steps run on the
    small [m, m] factor and the long matrix is multiplied twice only.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    gram = x @ x.T
    factor = None
    for step in range(steps):
        # p(G) = a + b G + c G^2; the next Gram matrix is p(G) G p(G), as all of them commute.
        poly = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        poly.diagonal().add_(a)
        factor = poly if factor is None else poly @ factor
        if step < steps - 1:
            gram = poly @ gram @ poly
    made: Tensor = x if factor is None else factor @ x
    return made if matrix.shape[0] <= matrix.shape[1] else made.T


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; convolutions count as [out, in * h * w].

    The update is scaled by 0.2 sqrt(max(m, n)), which gives it the RMS of an AdamW update (Liu et
    al., "Muon is scalable for LLM training", 2025): the two rates may be of one size.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                buffer = state["momentum"].mul_(group["momentum"]).add_(param.grad)
                nesterov = param.grad.add(buffer, alpha=group["momentum"])
                update = orthogonalise(nesterov.flatten(1))
                scale = 0.2 * math.sqrt(max(update.shape))
                param.add_(update.view_as(param), alpha=-group["lr"] * scale)


def build(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, matrix_lr: float, decay: float = 0.0
) -> list[torch.optim.Optimizer]:
    """Return the optimisers for these parameters; every group remembers its `base_lr`.

    A `matrix_lr` of 0 gives AdamW everything.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, param in named:
        hidden = param.ndim >= 2 and not any(edge in name for edge in _EDGES)
        (matrices if hidden and matrix_lr else others).append(param)
    adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    found: list[torch.optim.Optimizer] = [adamw]
    if matrices:
        found.append(Muon(matrices, lr=matrix_lr))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return found
