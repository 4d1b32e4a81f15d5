"""Default trackers."""

from __future__ import annotations

from dreambooth import Tracker, hookimpl
from dreambooth_plugins.tracker.jsonl import Jsonl
from dreambooth_plugins.tracker.tensorboard import TensorBoard
from dreambooth_plugins.tracker.wandb import Wandb


@hookimpl
def register_trackers() -> list[type[Tracker]]:
    """Bring `tensorboard`, `jsonl` and `wandb`."""
    return [TensorBoard, Jsonl, Wandb]
