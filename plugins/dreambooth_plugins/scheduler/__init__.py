"""Default noise schedulers."""

from __future__ import annotations

from dreambooth import Scheduler, hookimpl
from dreambooth_plugins.scheduler.auto import Auto
from dreambooth_plugins.scheduler.ddpm import DDPM
from dreambooth_plugins.scheduler.flow import Flow


@hookimpl
def register_schedulers() -> list[type[Scheduler]]:
    """Bring `auto`, `ddpm` and `flow`."""
    return [Auto, DDPM, Flow]
