"""A plain diffusers pipeline around the base that is in memory, for comparing files with it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer

from dreambooth_plugins.model.loading import quiet

if TYPE_CHECKING:
    from torch.nn import Module

    from dreambooth_plugins.model.loaded import LoadedStableDiffusion


def base_pipeline(model: LoadedStableDiffusion) -> Any:
    """Return a StableDiffusionPipeline that shares the base's weights and has no adapters.

    It has no VAE: it draws latents.
    """
    with quiet():
        return StableDiffusionPipeline(
            vae=None,
            text_encoder=without_adapters(model.parts["text_encoder"]),
            tokenizer=model.tokenizer,
            unet=without_adapters(model.parts["unet"]),
            scheduler=DDIMScheduler.from_config(dict(model.info.schedule)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def without_adapters(module: Module) -> Any:
    """Copy a part's structure, sharing its weights, and take the adapters out of the copy."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin: Any = copy.deepcopy(module, shared)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, last = name.rpartition(".")
            setattr(twin.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(twin, "peft_config"):
        del twin.peft_config
    return twin.eval()
