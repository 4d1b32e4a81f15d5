"""A plain diffusers pipeline around the base that is in memory, for comparing files with it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch.nn import Embedding

from dreambooth_plugins.common.libraries import BaseTunerLayer, diffusers
from dreambooth_plugins.common.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.nn import Module


def base_pipeline(
    unet: Module, text_encoder: Module, tokenizer: Any, schedule: Mapping[str, Any]
) -> Any:
    """Return a StableDiffusionPipeline that shares the base's weights: no adapters, no new words.

    It has no VAE: it draws latents. Adapters and words may be loaded into it; tokenizer and
    embedding table are its own.
    """
    with quiet():
        return diffusers.StableDiffusionPipeline(
            vae=None,
            text_encoder=with_own_table(without_adapters(text_encoder)),
            tokenizer=copy.deepcopy(tokenizer),
            unet=without_adapters(unet),
            scheduler=diffusers.DDIMScheduler.from_config(dict(schedule)),
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


def with_own_table(encoder: Any) -> Any:
    """Give a text encoder's copy a table of its own, without the rows of added tokens.

    A copy, since transformers grows a table in place when a word is loaded: shared, the live
    model's would grow with it.
    """
    table = encoder.get_input_embeddings()
    own = Embedding.from_pretrained(table.weight.detach().clone(), freeze=True)
    encoder.set_input_embeddings(own)
    return encoder
