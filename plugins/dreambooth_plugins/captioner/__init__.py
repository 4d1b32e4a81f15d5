"""Default captioners."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth import hookimpl
from dreambooth_plugins.captioner.blip import Blip
from dreambooth_plugins.captioner.florence2 import Florence2

if TYPE_CHECKING:
    from dreambooth.interfaces import Captioner


@hookimpl
def register_captioners() -> list[type[Captioner]]:
    """Return the captioners that come with the trainer."""
    return [Blip, Florence2]
