"""Default safety checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth import hookimpl
from dreambooth_plugins.safety.compvis import CompVis
from dreambooth_plugins.safety.open_nsfw import OpenNSFW

if TYPE_CHECKING:
    from dreambooth.interfaces import SafetyChecker


@hookimpl
def register_safety() -> list[type[SafetyChecker]]:
    """Return the checkers that come with the trainer."""
    return [CompVis, OpenNSFW]
