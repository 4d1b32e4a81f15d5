"""Default trackers."""

from __future__ import annotations

from dreambooth import Tracker, hookimpl
from dreambooth_plugins.tracker.csv import Csv
from dreambooth_plugins.tracker.jsonl import Jsonl
from dreambooth_plugins.tracker.tensorboard import TensorBoard
from dreambooth_plugins.tracker.wandb import Wandb


@hookimpl
def register_trackers() -> list[type[Tracker]]:
    """Bring `tensorboard`, `jsonl`, `csv` and `wandb`."""
    return [TensorBoard, Jsonl, Csv, Wandb]
