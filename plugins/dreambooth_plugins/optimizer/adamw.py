"""AdamW: its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dreambooth import Optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Implementation = Literal["auto", "fused", "foreach", "loop"]


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    At step t, for gradient g and rate lr:
    `p -= lr * weight_decay * p`;  `m = b1 m + (1 - b1) g`;  `v = b2 v + (1 - b2) g^2`;
    `p -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`.
    """

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the mean square, so that tiny gradients do not blow up the step."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Share of the weights, times the learning rate, taken away at each step."""
    implementation: Implementation = "auto"
    """How torch computes the step: one kernel (`fused`), batched kernels (`foreach`; fast on a
    GPU, but holds a temporary copy of what trains), or tensor by tensor (`loop`). `auto` takes
    `fused` where the device has it, else `foreach` on a GPU and `loop` elsewhere. They agree to
    rounding, not to the bit."""

    def build(self, groups: list[dict[str, Any]]) -> TorchOptimizer:
        """Build `torch.optim.AdamW`; `RunError` where `fused` is asked of a device without it.

        State a parameter: `step` (a float32 scalar tensor), `exp_avg` and `exp_avg_sq`.
        """
        from torch.optim import AdamW as TorchAdamW

        from dreambooth_plugins.optimizer.implementations import choose

        devices = {p.device.type for group in groups for p in group["params"]}
        chosen = choose(self.implementation, devices)
        return TorchAdamW(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=chosen == "fused",
            foreach=chosen == "foreach",
        )

    def lighter(self) -> Optimizer:
        """Name AdamW with moments of one byte a number."""
        from dreambooth_plugins.optimizer.adamw8bit import AdamW8bit

        return AdamW8bit(lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
