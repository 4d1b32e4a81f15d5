"""AdamW: its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dreambooth_plugins.optimizer.adam import AdamOptions, Implementation

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

    from dreambooth import Optimizer


class AdamW(AdamOptions):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    At step t, for gradient g and rate lr:
    `p -= lr * weight_decay * p`;  `m = b1 m + (1 - b1) g`;  `v = b2 v + (1 - b2) g^2`;
    `p -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`.
    """

    kind: Literal["adamw"] = "adamw"
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
