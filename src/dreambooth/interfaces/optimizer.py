"""The optimizer and learning-rate-schedule slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dreambooth.component import Component

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.optim import Optimizer as TorchOptimizer

LARGE = 2**20
"""Numbers of a tensor that is no small one."""


class Optimizer(Component):
    """An optimizer. Hook: `register_optimizers`."""

    lr: float = Field(default=5e-6, gt=0.0)
    """Learning rate; 5e-6 suits full tuning of SD 1.x, adapters want about 1e-4."""

    def build(self, groups: list[dict[str, Any]]) -> TorchOptimizer:
        """Build over torch parameter groups: `params`, and `lr` and `weight_decay` where set.

        Parameters are float32. Its state must be tensors and numbers alone: checkpoints hold it
        as safetensors and JSON. Numbers that it counts or estimates in its own parameter groups
        are kept too; before each step the engine sets `lr` there.
        """
        raise NotImplementedError  # abstract

    def state_bytes(self, size: int = LARGE) -> float:
        """Return the bytes of state each number of a tensor of `size` numbers costs."""
        return 8.0

    def scalars(self, optimizer: TorchOptimizer) -> Mapping[str, float]:
        """Return what else to log beside `train/lr`, from what `build` returned.

        `train/lr_effective` is the rate that acts, where the optimizer finds it itself.
        """
        return {}

    def lighter(self) -> Optimizer | None:
        """Return the same method with a smaller state, to be named where memory runs out."""
        return None


class LRSchedule(Component):
    """A learning-rate schedule. Hook: `register_lr_schedules`.

    A pure function of the step: nothing to save, nothing to get wrong on resume.
    """

    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the rate climbs from 0 to its full value, before the shape
    begins. A part that starts to train later climbs as long, from its own start."""

    def factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied by at optimizer step `step` of `steps`.

        Steps count from 0. Warm-up is applied by `at`, not here: where there is one, this gets
        the steps after it, so that the shape begins when the full rate is reached.
        """
        raise NotImplementedError  # abstract

    def at(self, step: int, steps: int, start: int = 0) -> float:
        """Return the factor with linear warm-up: step k of w gives (k + 1) / w of the full rate.

        What joins training at optimizer step `start` has a warm-up of its own from there on: its
        optimizer state is as empty as that of the others was. The decay is the run's, the same
        for all. 0 before `start` where there is a warm-up.
        """
        if not self.warmup_steps:
            return self.factor(step, steps)
        warm = min(1.0, max(0.0, (step - start + 1) / self.warmup_steps))
        left = max(1, steps - self.warmup_steps)
        return warm * self.factor(max(0, step - self.warmup_steps), left)

    def depends_on_end(self) -> bool:
        """Say whether more steps would change the rate of the earlier ones."""
        return False
