"""Default optimizers and learning-rate schedules."""

from __future__ import annotations

from dreambooth import LRSchedule, Optimizer, hookimpl
from dreambooth_plugins.optimizer.adamw import AdamW
from dreambooth_plugins.optimizer.schedules import Constant, Cosine, Linear


@hookimpl
def register_optimizers() -> list[type[Optimizer]]:
    """Bring `adamw`."""
    return [AdamW]


@hookimpl
def register_lr_schedules() -> list[type[LRSchedule]]:
    """Bring `constant`, `linear` and `cosine`."""
    return [Constant, Linear, Cosine]
