"""A plain diffusers pipeline around the base that is in memory, for comparing files with it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Embedding

from dreambooth_plugins.common.libraries import BaseTunerLayer, diffusers
from dreambooth_plugins.common.quiet import quiet
from dreambooth_plugins.model.folder.loading import class_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from torch.nn import Module

    from dreambooth_plugins.model.folder.loading import Parts
    from dreambooth_plugins.model.folder.part import Part


def pipeline_class(name: str) -> Any:
    """Return a pipeline of diffusers by its class's name."""
    with quiet():  # the import gives advice as well
        return getattr(diffusers, name)


def opened_pipeline(
    cls: Any,
    parts: Iterable[Part],
    live: Parts,
    folder: Path,
    file: Path | None,
    absent: Iterable[str],
) -> Any:
    """Return a pipeline opened from a diffusers folder, or from a single file configured there.

    By the libraries' own loaders, a part after the other; `absent` names components it has not.
    Weights that equal those of a `live` part in memory to the bit share its memory: what a file
    has of the base is held once.
    """
    with quiet():
        if file is not None:
            pipe = cls.from_single_file(str(file), config=str(folder), local_files_only=True)
            for part in parts:
                share(getattr(pipe, part.name), live.loaded.get(part.name))
            return pipe
        opened: dict[str, Any] = dict.fromkeys(absent)
        for part in parts:
            if part.role in ("denoiser", "text_encoders"):
                library = part.library == "transformers"
                wide: dict[str, Any] = {"dtype" if library else "torch_dtype": torch.float32}
                loader = class_of(part)
                module = loader.from_pretrained(folder / part.name, local_files_only=True, **wide)
                opened[part.name] = share(module, live.loaded.get(part.name))
        return cls.from_pretrained(str(folder), local_files_only=True, **opened)


@torch.no_grad()
def share(module: Any, live: Module | None) -> Any:
    """Let a module have the memory of those weights that equal another's to the bit."""
    if live is not None:
        there = {n.replace(".base_layer.", "."): p for n, p in live.named_parameters()}
        for name, own in module.named_parameters():
            other = there.get(name)
            if (
                other is not None
                and (own.shape, own.dtype, own.device) == (other.shape, other.dtype, other.device)
                and torch.equal(own, other)
            ):
                own.data = other.data
    return module


def base_pipeline(
    cls: Any,
    networks: Mapping[str, Module],
    encoders: Mapping[str, Module],
    tokenizers: Mapping[str, Any],
    schedule: Mapping[str, Any],
    options: Mapping[str, Any],
    learns_words: Collection[str],
) -> Any:
    """Return a pipeline that shares the base's weights: no adapters, no new words.

    It has no VAE: it draws latents. Adapters may be loaded into it, and words into the encoders
    `learns_words` names; tokenizers and the embedding tables of these are its own. What else the
    class has (a safety checker) is left out.
    """
    texts = {name: without_adapters(encoder) for name, encoder in encoders.items()}
    texts |= {name: with_own_table(texts[name]) for name in learns_words}
    known = {
        **{name: without_adapters(network) for name, network in networks.items()},
        **texts,
        **{name: copy.deepcopy(tokenizer) for name, tokenizer in tokenizers.items()},
        **options,
    }
    wanted, _ = cls._get_signature_keys(cls)
    with quiet():
        flows = str(schedule.get("_class_name", "")).startswith("FlowMatch")
        solver: Any = (
            diffusers.FlowMatchEulerDiscreteScheduler if flows else diffusers.DDIMScheduler
        )
        scheduler = solver.from_config(dict(schedule))
        return cls(**{**dict.fromkeys(wanted), "scheduler": scheduler, **known})


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
