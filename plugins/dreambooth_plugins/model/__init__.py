"""Default model plugins."""

from __future__ import annotations

from dreambooth import hookimpl
from dreambooth.interfaces import Model
from dreambooth_plugins.model.stable_diffusion import StableDiffusion


@hookimpl
def register_models() -> list[type[Model]]:
    """Return the model families that come with the trainer."""
    return [StableDiffusion]
