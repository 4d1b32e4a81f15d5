"""The original Stable Diffusion layout: what one file with the whole model calls everything.

The names are those of CompVis's and Stability's checkpoints (SD 1.x: OpenAI's CLIP below
`cond_stage_model.transformer.`, SD 2.x: OpenCLIP below `cond_stage_model.model.`). diffusers reads
them and does not write them; this is the inverse of its converters, from the architecture.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dreambooth.errors import RunError
from dreambooth_plugins.formats.original.open_clip import to_open_clip

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

LAYOUT = "original"

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_UNET_BLOCK = re.compile(
    r"(?P<half>down_blocks|up_blocks)\.(?P<block>\d+)\."
    r"(?P<what>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_UNET_MID = re.compile(r"mid_block\.(?P<what>resnets|attentions)\.(?P<layer>\d)\.(?P<rest>.+)")
_VAE_BLOCK = re.compile(
    r"(?P<side>encoder|decoder)\.(?:down_blocks|up_blocks)\.(?P<block>\d+)\."
    r"(?P<what>resnets|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_VAE_MID = re.compile(
    r"(?P<side>encoder|decoder)\.mid_block\.(?P<what>resnets|attentions)\.(?P<layer>\d)\.(?P<rest>.+)"
)
_CLIP = re.compile(
    r"^((?:cond_stage_model|conditioner\.embedders\.0)\.transformer\.)"
    r"(?=(?:embeddings|encoder|final_layer_norm)\.)"
)
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def to_original(
    part: str,
    tensors: Mapping[str, Tensor],
    configs: Mapping[str, Mapping[str, Any]],
    prefix: str,
) -> dict[str, Tensor]:
    """Return a part's tensors, named as a diffusers folder names them, in the original layout.

    `configs` holds the config.json of every part, `prefix` begins the part's names. Shapes stay,
    but for the VAE's attention, whose projections [C, C] are 1 x 1 convolutions there, and
    OpenCLIP's, where q, k and v are one matrix. `RunError` for a tensor the layout has no place
    for.
    """
    if part.startswith("text_encoder"):
        # SD 2.x is told by the width of its texts; SDXL's second encoder is OpenCLIP's.
        open_clip = configs["unet"]["cross_attention_dim"] == 1024 or part == "text_encoder_2"
        if open_clip:
            named = {f"model.{n}": t for n, t in to_open_clip(tensors, part).items()}
        else:
            named = {f"transformer.{n}": t for n, t in tensors.items()}
    elif part == "unet":
        numbered = unet_names(configs["unet"])
        named = {numbered(n): t for n, t in tensors.items()}
    else:
        levels = len(configs["vae"]["block_out_channels"])
        named = {_vae_name(n, levels): _convolution(n, t) for n, t in tensors.items()}
    return {prefix + name: tensor for name, tensor in named.items()}


def with_text_model(name: str) -> str:
    """Return a tensor's name with the `text_model.` that some mergers leave out of CLIP's."""
    return _CLIP.sub(r"\1text_model.", name)


def unet_names(config: Mapping[str, Any]) -> Callable[[str], str]:
    """Return what gives the original name for a tensor of a UNet with this configuration."""
    layers = config.get("layers_per_block", 2)
    deep = {i for i, t in enumerate(config["up_block_types"]) if "CrossAttn" in t}
    return lambda name: _unet_name(name, layers, deep)


def _unet_name(name: str, layers: int, deep: set[int]) -> str:
    if match := _UNET_BLOCK.fullmatch(name):
        return _unet_block(match, layers, deep)
    if match := _UNET_MID.fullmatch(name):
        if match["what"] == "attentions":
            return f"middle_block.1.{match['rest']}"
        return f"middle_block.{2 * int(match['layer'])}.{_inner(match['rest'], _RESNET)}"
    return _known("unet", name, _UNET)


def _unet_block(match: re.Match[str], layers: int, deep: set[int]) -> str:
    """Entries are numbered through all levels.

    A level has `layers` of them going down, and a sampler but for the last; one more going up,
    where the sampler comes in the last entry, after resnet and, in `deep` levels, attention.
    """
    block, layer, rest = int(match["block"]), int(match["layer"]), match["rest"]
    down, what = match["half"] == "down_blocks", match["what"]
    first = block * (layers + 1) + (1 if down else 0)
    half = "input_blocks" if down else "output_blocks"
    if what == "downsamplers":
        return f"{half}.{first + layers}.0.{_inner(rest, {'conv': 'op'})}"
    if what == "upsamplers":
        return f"{half}.{first + layers}.{2 if block in deep else 1}.{rest}"
    if what == "resnets":
        return f"{half}.{first + layer}.0.{_inner(rest, _RESNET)}"
    return f"{half}.{first + layer}.1.{rest}"


def _vae_name(name: str, levels: int) -> str:
    """The decoder's levels count from the largest picture, in diffusers from the smallest."""
    if match := _VAE_BLOCK.fullmatch(name):
        block, encoder = int(match["block"]), match["side"] == "encoder"
        at = f"encoder.down.{block}" if encoder else f"decoder.up.{levels - 1 - block}"
        if match["what"] != "resnets":
            return f"{at}.{'downsample' if encoder else 'upsample'}.{match['rest']}"
        rest = _inner(match["rest"], {"conv_shortcut": "nin_shortcut"})
        return f"{at}.block.{match['layer']}.{rest}"
    if match := _VAE_MID.fullmatch(name):
        at = f"{match['side']}.mid"
        if match["what"] == "attentions":
            return f"{at}.attn_1.{_inner(match['rest'], _VAE_ATTENTION)}"
        return f"{at}.block_{int(match['layer']) + 1}.{match['rest']}"
    side = name.split(".", maxsplit=1)[0]
    ends = {f"{side}.{end}": f"{side}.{end}" for end in ("conv_in", "conv_out")}
    ends[f"{side}.conv_norm_out"] = f"{side}.norm_out"
    quants = {end: end for end in ("quant_conv", "post_quant_conv")}
    return _known("vae", name, {**ends, **quants})


def _convolution(name: str, tensor: Tensor) -> Tensor:
    flat = ".mid_block.attentions." in name and tensor.ndim == 2
    return tensor[:, :, None, None] if flat else tensor


def _inner(rest: str, names: Mapping[str, str]) -> str:
    module, _, leaf = rest.rpartition(".")
    return f"{names.get(module, module)}.{leaf}"


def _known(part: str, name: str, names: Mapping[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    if module not in names:
        raise RunError(
            f"the original layout has no place for {part}.{name}",
            "export the model as a diffusers folder",
        )
    return f"{names[module]}.{leaf}"
