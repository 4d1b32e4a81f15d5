"""Default callbacks."""

from __future__ import annotations

from dreambooth import Callback, hookimpl
from dreambooth_plugins.callback.time_limit import TimeLimit


@hookimpl
def register_callbacks() -> list[type[Callback]]:
    """Bring `time_limit`."""
    return [TimeLimit]
