"""Default maskers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth import hookimpl
from dreambooth_plugins.masker.u2net import U2Net

if TYPE_CHECKING:
    from dreambooth.interfaces import Masker


@hookimpl
def register_maskers() -> list[type[Masker]]:
    """Return the maskers that come with the trainer."""
    return [U2Net]
