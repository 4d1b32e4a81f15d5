"""Default noise schedulers."""

from __future__ import annotations

from dreambooth import Scheduler, hookimpl
from dreambooth_plugins.scheduler.ddpm import DDPM
from dreambooth_plugins.scheduler.flow import Flow


@hookimpl
def register_schedulers() -> list[type[Scheduler]]:
    """Bring `ddpm` and `flow`."""
    return [DDPM, Flow]
