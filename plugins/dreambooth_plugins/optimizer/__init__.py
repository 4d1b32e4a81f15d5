"""Default optimizers and learning-rate schedules."""

from __future__ import annotations

from dreambooth import LRSchedule, Optimizer, hookimpl
from dreambooth_plugins.optimizer.adamw import AdamW
from dreambooth_plugins.optimizer.adamw8bit import AdamW8bit
from dreambooth_plugins.optimizer.prodigy import Prodigy
from dreambooth_plugins.optimizer.schedules import Constant, Cosine, Linear


@hookimpl
def register_optimizers() -> list[type[Optimizer]]:
    """Bring `adamw`, `adamw8bit` and `prodigy`."""
    return [AdamW, AdamW8bit, Prodigy]


@hookimpl
def register_lr_schedules() -> list[type[LRSchedule]]:
    """Bring `constant`, `linear` and `cosine`."""
    return [Constant, Linear, Cosine]
