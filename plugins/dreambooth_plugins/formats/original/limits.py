"""Which models the original Stable Diffusion layout can express, from their JSON files alone."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DOWN = {"DownBlock2D", "CrossAttnDownBlock2D"}
_UP = {"UpBlock2D", "CrossAttnUpBlock2D"}
_MID = "UNetMidBlock2DCrossAttn"
_ABSENT = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
    "time_embedding_dim",
    "dual_cross_attention",
    "only_cross_attention",
    "resnet_skip_time_act",
)
"""Options of the UNet that add or take away weights for which the layout has no names."""
_FIXED = {
    "attention_type": "default",
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
}


def original_refusal(
    unet: Mapping[str, Any], vae: Mapping[str, Any], *, named: tuple[str, ...] = ()
) -> str:
    """Return why a model cannot be written in the original layout; empty where it can.

    The original programs number the blocks of a UNet with equally many layers on each level;
    sizes are free as far as `from_single_file` with a configuration reads them. `named` are
    options of the UNet for whose weights this family's layout has names.
    """
    return next(chain(_unet_reasons(unet, named), _vae_reasons(vae)), "")


def _unet_reasons(unet: Mapping[str, Any], named: tuple[str, ...]) -> Iterator[str]:
    kinds = [*unet["down_block_types"], *unet["up_block_types"]]
    for kind in kinds:
        if kind not in _DOWN | _UP:
            yield f"the original layout has no UNet blocks of the kind {kind}"
    if (mid := unet.get("mid_block_type") or _MID) != _MID:
        yield f"the original layout has no middle block of the kind {mid}"
    if not isinstance(unet.get("layers_per_block", 2), int):
        yield "the UNet's levels differ in their number of layers, which the layout cannot say"
    for option in _ABSENT:
        if unet.get(option) and option not in named:
            yield f"the original layout has no place for the UNet's {option}"
    for option, plain in _FIXED.items():
        if unet.get(option, plain) not in (plain, None):
            yield f"the original layout does not know the UNet's {option}: {unet[option]}"


def _vae_reasons(vae: Mapping[str, Any]) -> Iterator[str]:
    kinds = [*vae.get("down_block_types", ()), *vae.get("up_block_types", ())]
    for kind in kinds:
        if kind not in {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
            yield f"the original layout has no VAE blocks of the kind {kind}"
