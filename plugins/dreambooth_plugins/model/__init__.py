"""Default model plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth import hookimpl
from dreambooth_plugins.model.auto import Auto
from dreambooth_plugins.model.flow.flux import Flux
from dreambooth_plugins.model.flow.flux2_klein import Flux2Klein
from dreambooth_plugins.model.flow.qwen_image import QwenImage
from dreambooth_plugins.model.flow.sd3 import StableDiffusion3
from dreambooth_plugins.model.flow.z_image import ZImage
from dreambooth_plugins.model.sdxl import SDXL
from dreambooth_plugins.model.stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    from dreambooth.interfaces import Model


@hookimpl
def register_models() -> list[type[Model]]:
    """Return the model families that come with the trainer."""
    return [
        Auto, Flux, Flux2Klein, QwenImage, SDXL, StableDiffusion, StableDiffusion3, ZImage,
    ]  # fmt: skip
