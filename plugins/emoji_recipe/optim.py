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
    """Return about the nearest orthogonal matrix of each `matrix` [..., m, n].

    Five Newton-Schulz steps with the quintic coefficients of Jordan et al., "Muon: An optimizer
    for hidden layers in neural networks" (2024); singular values end within about 0.7 .. 1.2.
    Every iterate is a polynomial of the first Gram matrix times `matrix`, so the steps run on the
    small [m, m] factor and the long matrix is multiplied twice only.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    factor = None
    for step in range(steps):
        # p(G) = a + b G + c G^2; the next Gram matrix is p(G) G p(G), as all of them commute.
        poly = (gram @ gram).mul_(c).add_(gram, alpha=b)
        poly.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = poly if factor is None else poly @ factor
        if step < steps - 1:
            gram = poly @ gram @ poly
    made: Tensor = x if factor is None else factor @ x
    return made if matrix.shape[-2] <= matrix.shape[-1] else made.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; convolutions count as [out, in * h * w].

    The update is scaled by 0.2 sqrt(max(m, n)), which gives it the RMS of an AdamW update (Liu et
    al., "Muon is scalable for LLM training", 2025): the two rates may be of one size. Parameters
    of one shape are updated together.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float | Tensor, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    alike.setdefault(param.shape, []).append(param)
            for shape, params in alike.items():
                update = orthogonalise(self._momenta(params, group["momentum"]))
                scale = 0.2 * math.sqrt(max(update.shape[1:]))
                moves = (update * (-scale * group["lr"])).view(len(params), *shape).unbind()
                torch._foreach_add_([*params], moves)

    def _momenta(self, params: list[nn.Parameter], momentum: float) -> Tensor:
        """Take the gradients in; return Nesterov's look ahead as matrices [k, m, n]."""
        for param in params:
            if not self.state[param]:
                self.state[param]["momentum"] = torch.zeros_like(param)
        buffers = [self.state[param]["momentum"] for param in params]
        gradients = [param.grad for param in params if param.grad is not None]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        looks = torch._foreach_add(gradients, buffers, alpha=momentum)
        return torch.stack([look.flatten(1) for look in looks])


def build(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, matrix_lr: float, decay: float = 0.0
) -> list[torch.optim.Optimizer]:
    """Return the optimisers for these parameters; every group remembers its `base_lr`.

    A `matrix_lr` of 0 gives AdamW everything. On a card the rates are tensors, which a captured
    step reads anew.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, param in named:
        hidden = param.ndim >= 2 and not any(edge in name for edge in _EDGES)
        (matrices if hidden and matrix_lr else others).append(param)
    device = others[0].device
    on_card = device.type != "cpu"

    def rate(value: float) -> float | Tensor:
        return torch.tensor(value, device=device) if on_card else value

    adamw = torch.optim.AdamW(
        others, rate(lr), betas=(0.9, 0.99), weight_decay=decay, fused=True, capturable=on_card
    )
    found: list[tuple[torch.optim.Optimizer, float]] = [(adamw, lr)]
    if matrices:
        found.append((Muon(matrices, rate(matrix_lr)), matrix_lr))
    for optimizer, base in found:
        for group in optimizer.param_groups:
            group["base_lr"] = base
    return [optimizer for optimizer, _ in found]
