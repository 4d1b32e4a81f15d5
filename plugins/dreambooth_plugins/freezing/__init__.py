"""Default freezing policies."""

from __future__ import annotations

from dreambooth import FreezingPolicy, hookimpl
from dreambooth_plugins.freezing.adapter import Adapter
from dreambooth_plugins.freezing.components import Components


@hookimpl
def register_freezing_policies() -> list[type[FreezingPolicy]]:
    """Return the policies that come with the trainer."""
    return [Adapter, Components]
