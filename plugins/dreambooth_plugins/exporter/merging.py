"""Adapters folded into the weights they sit on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.interfaces.model import NEW_ROWS
from dreambooth_plugins.common.libraries import BaseTunerLayer
from dreambooth_plugins.exporter.comparison import weights_in_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from torch.nn import Module

    from dreambooth.interfaces import Artifact, LoadedModel


def trained_weights(artifact: Artifact, model: LoadedModel) -> Mapping[str, Tensor]:
    """Return the weights by the base's names: those that trained, or adapters folded into them.

    Rows of a learned word are among neither of them: see `learned_rows`.
    """
    if artifact.kind == "adapter":
        return merged_weights(artifact, model)
    rows = learned_rows(artifact)
    return {name: tensor for name, tensor in artifact.tensors.items() if name not in rows}


def learned_rows(artifact: Artifact) -> dict[str, Tensor]:
    """Return the rows [n, dim] of a learned word by qualified name; empty without one."""
    return {n: t for n, t in artifact.tensors.items() if n.endswith(f".{NEW_ROWS}")}


@torch.no_grad()
def merged_weights(artifact: Artifact, model: LoadedModel) -> dict[str, Tensor]:
    """Return what the adapted layers' weights become, float32 on the CPU, by qualified name.

    Names are those of the base, before adapters were put on. Computed from the source's own
    weights where the base is held in half precision, one layer at a time; the model is left as
    it is.
    """
    out: dict[str, Tensor] = {}
    with weights_in_place(model, artifact.tensors):
        for part in artifact.metadata["adapters"]:
            module = model.parts[part]
            rounded = any(p.dtype != torch.float32 for p in module.parameters())
            stored = model.stored_weights(part) if rounded else {}
            for name, layer in _layers(module):
                base = layer.get_base_layer().weight
                own = copy.deepcopy(layer).cpu()
                exact = stored.get(f"{part}.{name}.weight", base.detach())
                own.get_base_layer().weight.data = exact.detach().float().cpu().clone()
                own.merge(safe_merge=True)
                out[f"{part}.{name}.weight"] = own.get_base_layer().weight.data
    return out


def _layers(module: Module) -> Iterator[tuple[str, Any]]:
    for name, layer in module.named_modules():
        if isinstance(layer, BaseTunerLayer):
            yield name, layer
