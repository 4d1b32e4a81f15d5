"""Default freezing policies."""

from __future__ import annotations

from dreambooth import FreezingPolicy, hookimpl
from dreambooth_plugins.freezing.components import Components


@hookimpl
def register_freezing_policies() -> list[type[FreezingPolicy]]:
    """Bring `components`."""
    return [Components]
