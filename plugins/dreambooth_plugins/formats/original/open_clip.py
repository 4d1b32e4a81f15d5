"""Text encoders of SD 2.x and SDXL as original files have them: OpenCLIP's names and matrices."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dreambooth.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_INSIDE = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_PROJECTION = "text_projection.weight"
_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LAYERS = 24
"""Layers of the original. The texts are the output of the last but one: diffusers leaves the
last out."""


def to_open_clip(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of a CLIP text encoder (names with `text_model.`) as OpenCLIP names them.

    q, k and v [dim, dim] become one matrix [3 dim, dim]. An encoder of one layer less than the
    original gets a copy of its last one in that place, which no reader's result depends on:
    programs that build all layers find them.
    """
    out: dict[str, Tensor] = {}
    layers = 0
    for name, tensor in tensors.items():
        if name in _OUTSIDE:
            out[_OUTSIDE[name]] = tensor
            continue
        if name == _PROJECTION:  # OpenCLIP multiplies from the other side
            out[_PROJECTION.removesuffix(".weight")] = tensor.T.contiguous()
            continue
        match = _LAYER.fullmatch(name)
        if match is None:
            raise RunError(
                f"the original layout has no place for {part}.{name}",
                "export the model as a diffusers folder",
            )
        number, module, leaf = match.groups()
        layers = max(layers, int(number) + 1)
        at = f"transformer.resblocks.{number}"
        if module in _INSIDE:
            out[f"{at}.{_INSIDE[module]}.{leaf}"] = tensor
        elif module == _PROJECTIONS[0]:
            out[f"{at}.attn.in_proj_{leaf}"] = _joined(tensors, number, leaf)
        elif module not in _PROJECTIONS:
            raise RunError(
                f"the original layout has no place for {part}.{name}",
                "export the model as a diffusers folder",
            )
    if layers == LAYERS - 1:
        last, beyond = (f"transformer.resblocks.{n}." for n in (layers - 1, layers))
        out |= {
            beyond + n.removeprefix(last): t.clone() for n, t in out.items() if n.startswith(last)
        }
    return out


def _joined(tensors: Mapping[str, Tensor], number: str, leaf: str) -> Tensor:
    import torch

    at = f"text_model.encoder.layers.{number}"
    return torch.cat([tensors[f"{at}.{projection}.{leaf}"] for projection in _PROJECTIONS])
