from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dreambooth import Loss, LRSchedule, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth.interfaces import StepTensors


class LogCosh(Loss):
    """log cosh of the error: squared near zero, linear far out."""

    kind: Literal["log_cosh"] = "log_cosh"
    prior_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the class rows."""

    def rows(self, s: StepTensors) -> Tensor:
        import torch

        error = (s.pred - s.target).abs()
        value = error + torch.nn.functional.softplus(-2 * error) - math.log(2)
        weight = torch.where(s.is_prior, self.prior_weight * s.weight, s.weight)
        return weight * value.flatten(1).mean(1)


@hookimpl
def register_losses():
    return [LogCosh]


class Stepped(LRSchedule):
    """A tenth after half of the steps; warm-up is its own matter."""

    kind: Literal["stepped"] = "stepped"

    def factor(self, step, steps):
        return 1.0 if step < steps / 2 else 0.1

    def at(self, step, steps):
        return min(1.0, (step + 1) / 2) * self.factor(step, steps)

    def depends_on_end(self):
        return True


@hookimpl
def register_lr_schedules():
    return [Stepped]
