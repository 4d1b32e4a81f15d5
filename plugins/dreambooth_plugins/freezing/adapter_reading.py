"""The tensors of somebody's LoRA, and putting them into adapters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from dreambooth.errors import JobError
from dreambooth_plugins.freezing.adapter_methods import LowRank
from dreambooth_plugins.freezing.adapter_peft import ADAPTER, Layer

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth.interfaces import LoadedModel
    from dreambooth_plugins.freezing.adapter_file import Contents
    from dreambooth_plugins.freezing.adapter_methods import Method


@dataclass(frozen=True)
class Found:
    """What a file has for one module, float32."""

    down: Tensor
    """[rank, in] or [rank, in, k, k]."""
    up: Tensor
    """[out, rank] or [out, rank, 1, 1]."""
    scale: float
    """What the update up @ down is multiplied by."""
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return self.down.shape[0]

    def layer(self, method: Method) -> Layer:
        """Return the rank, and the alpha that gives the file's scale under a method's rule."""
        stabilized = isinstance(method, LowRank) and method.rank_stabilized
        return Layer(self.rank, self.scale * (math.sqrt(self.rank) if stabilized else self.rank))

    @torch.no_grad()
    def load(self, layer: Any) -> None:
        """Copy the tensors into an adapter that was made for them."""
        layer.lora_A[ADAPTER].weight.copy_(self.down)
        layer.lora_B[ADAPTER].weight.copy_(self.up)
        if self.magnitude is not None:
            layer.lora_magnitude_vector[ADAPTER].weight.copy_(self.magnitude)


def read(contents: Contents, model: LoadedModel) -> dict[str, dict[str, Found]]:
    """Return part -> module -> tensors; `JobError` for a module or a shape the model lacks."""
    names = {v: k for k, v in model.adapter_keys("kohya").items()} if contents.kohya else {}
    out: dict[str, dict[str, Found]] = {}
    with safe_open(contents.path, "pt") as file:
        for (part, module), roles in contents.tensors.items():
            full = names.get(module.replace("lora_te1_", "lora_te_", 1), f"{part}.{module}")
            name = full.removeprefix(f"{part}.")
            tensors = {role: file.get_tensor(key).float() for role, key in roles.items()}
            _check(contents, model, part, name, tensors)
            scale = _scale(contents, part, name, tensors)
            found = Found(tensors["down"], tensors["up"], scale, tensors.get("magnitude"))
            out.setdefault(part, {})[name] = found
    order = {
        part: {n: i for i, (n, _) in enumerate(model.parts[part].named_modules())} for part in out
    }
    return {
        part: dict(sorted(modules.items(), key=lambda item: order[part][item[0]]))
        for part, modules in out.items()
    }


def _check(
    contents: Contents, model: LoadedModel, part: str, name: str, tensors: dict[str, Tensor]
) -> None:
    try:
        weight: Any = model.parts[part].get_submodule(name).weight
    except AttributeError:
        raise JobError(
            f"{contents.path}: the model has no module {part}.{name}",
            "the LoRA was made for another architecture, or with a layout that is not known here",
        ) from None
    down, up = tensors["down"], tensors["up"]
    fits = down.shape[1:] == weight.shape[1:] and up.shape[0] == weight.shape[0]
    if not fits or down.shape[0] != up.shape[1]:
        raise JobError(
            f"{contents.path}: {part}.{name} takes {list(weight.shape)}, the file has "
            f"{list(up.shape)} and {list(down.shape)}",
            "the LoRA was made for a model of another size",
        )


def _scale(contents: Contents, part: str, name: str, tensors: dict[str, Tensor]) -> float:
    """Return alpha / rank (alpha / sqrt(rank) if rank-stabilised); 1 where nothing is said."""
    rank = tensors["down"].shape[0]
    if "alpha" in tensors:
        return float(tensors["alpha"]) / rank
    alpha = contents.alpha(part, name)
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if contents.config[part].get("use_rslora") else rank)
