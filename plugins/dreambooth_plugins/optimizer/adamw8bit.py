"""AdamW with 8-bit moments: its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dreambooth.interfaces.optimizer import LARGE
from dreambooth_plugins.common.extras import importing, missing
from dreambooth_plugins.common.quiet import quiet_import
from dreambooth_plugins.optimizer.adam import BLOCK, AdamOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim import Optimizer as TorchOptimizer

    from dreambooth import Job, Problem
    from dreambooth.interfaces import ModelInfo


class AdamW8bit(AdamOptions):
    """AdamW whose moments take a byte a number instead of four (arXiv:2110.02861).

    The step is that of `adamw`, in float32. Between steps `m` and `v` are kept in blocks of 256
    numbers: each block's largest magnitude `s` in float32, and for each number x the index of the
    nearest of 256 values to x / s, which lie closer together near zero. Weights and gradients stay
    float32. At full size that is 2.03 bytes of state a parameter instead of 8.

    From bitsandbytes (`pip install 'dreambooth-trainer[8bit]'`): NVIDIA, AMD and Intel GPUs, and
    the CPU, where x / s is rounded to 1.5e-5 first: what is smaller, zero too, becomes about that.
    Adapters of a low rank consist of small tensors and gain little.
    """

    kind: Literal["adamw8bit"] = "adamw8bit"
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the mean square. It also bounds the step of a number whose mean square
    was rounded to zero, being far below the largest of its block."""
    min_8bit_size: int = Field(default=4096, ge=1)
    """Tensors of fewer numbers (biases, norms) keep moments of 32 bits."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find that bitsandbytes is not installed, without importing it."""
        yield from missing("bitsandbytes", "8bit", ("optimizer", "kind"))

    def build(self, groups: list[dict[str, Any]]) -> TorchOptimizer:
        """Build bitsandbytes' `AdamW8bit`; `RunError` where it cannot work on the device.

        State a parameter: `step` (a number), `state1` (m) and `state2` (v), uint8 codes with
        `absmax1` and `absmax2` a block and the tables `qmap1` and `qmap2`; float32 without those
        for small tensors.
        """
        with importing("8bit", "optimizer"), quiet_import("bitsandbytes"):
            from dreambooth_plugins.optimizer.adamw8bit_states import open_adamw8bit
        return open_adamw8bit(groups, **self.model_dump(exclude={"kind"}))

    def state_bytes(self, size: int = LARGE) -> float:
        """Two codes and a share of two scales; 8 bytes for small tensors."""
        return 8.0 if size < self.min_8bit_size else 2.0 + 2 * 4.0 / BLOCK
