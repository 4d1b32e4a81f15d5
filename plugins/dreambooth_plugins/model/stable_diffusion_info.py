"""What a Stable Diffusion 1.x or 2.x model is, from its JSON files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.interfaces import Usual
from dreambooth_plugins.formats.original.families import ONE_FAMILY
from dreambooth_plugins.formats.original.limits import original_refusal
from dreambooth_plugins.model import parts_of
from dreambooth_plugins.model.clip_unet_info import (
    check_channels,
    check_tokenizers,
    class_of,
    described,
    holds,
    read_index,
    read_schedule,
    unet_info,
)
from dreambooth_plugins.model.folder.plausible import check_network

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.interfaces import ModelInfo
    from dreambooth_plugins.model.folder.source import Source

PARTS = ("unet", "text_encoder", "vae")
_NAMES = {
    ("stable-diffusion-1", "epsilon"): ("Stable Diffusion 1.x", "sd_v1", "stable-diffusion-v1"),
    ("stable-diffusion-1", "v_prediction"): ("Stable Diffusion 1.x", "sd_v1", "sd_v1"),
    ("stable-diffusion-2", "epsilon"): (
        "Stable Diffusion 2.x", "sd_v2", "stable-diffusion-v2-512",
    ),
    ("stable-diffusion-2", "v_prediction"): (
        "Stable Diffusion 2.x", "sd_v2", "stable-diffusion-v2-768-v",
    ),
}  # fmt: skip
"""Title, kohya's name and ModelSpec's of the sizes that other programs know."""


def model_info(source: Source) -> ModelInfo:
    """Describe the model; `JobError` where it is incomplete or of another family."""
    check_index(source.config)
    return described(source, _read)


def _read(source: Source) -> ModelInfo:
    configs = {part: source.part_config(part) for part in PARTS}
    for part in PARTS:
        check_network(part, source.config_folder(part) / "config.json", configs[part])
    unet, text, vae = (configs[part] for part in PARTS)
    schedule = read_schedule(source)
    check_tokenizers(source)
    _check_fit(source, unet, text, vae)
    family = _family(unet)
    names = _NAMES.get((family, schedule.get("prediction_type", "epsilon")))
    return unet_info(
        source,
        unet,
        vae,
        family=family,
        blocks=_blocks(unet),
        layouts={"original": original_refusal(unet, vae), "kohya": ""},
        trains=("unet", "text_encoder"),
        pipeline="StableDiffusionPipeline",
        names=dict(zip(("title", "kohya", "modelspec"), names, strict=True))
        if names
        else {"title": "Stable Diffusion"},
        learns_words={"text_encoder": "emb_params"},
        usual=Usual(lora_parts=("unet",)),
    )


def _blocks(unet: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the UNet blocks that decide content and style, where it has several resolutions.

    Cross-attention at low resolution decides what is seen and how it is laid out, at high
    resolution its colours and surfaces (Voynov et al. 2023, arXiv:2303.09522, on SD 1.4).
    """
    down = [i for i, kind in enumerate(unet["down_block_types"]) if kind.startswith("CrossAttn")]
    up = [i for i, kind in enumerate(unet["up_block_types"]) if kind.startswith("CrossAttn")]
    if len(down) < 2 or len(up) < 2:
        return {}
    return {
        "content": (
            f"unet.down_blocks.{down[-1]}.attentions.*",
            "unet.mid_block.attentions.*",
            f"unet.up_blocks.{up[0]}.attentions.*",
        ),
        "style": (
            f"unet.down_blocks.{down[0]}.attentions.*",
            f"unet.up_blocks.{up[-1]}.attentions.*",
        ),
    }


def check_index(folder: Path) -> None:
    """Raise `JobError` unless `folder` is a diffusers folder of Stable Diffusion 1.x or 2.x."""
    index = read_index(folder, parts_of.STABLE_DIFFUSION)
    if not holds(index, parts_of.STABLE_DIFFUSION) or class_of(index, "text_encoder_2"):
        name = index.get("_class_name", "an unknown pipeline")
        xl = bool(class_of(index, "text_encoder_2")) and "XL" in str(name)
        hint = "set model.kind: sdxl" if xl else f"{ONE_FAMILY} (StableDiffusionPipeline)"
        raise JobError(f"{folder} holds a {name}", hint)


def _check_fit(
    source: Source, unet: dict[str, Any], text: dict[str, Any], vae: dict[str, Any]
) -> None:
    if unet.get("addition_embed_type") == "text_time":
        raise JobError(f"{source.config} holds an SDXL UNet", ONE_FAMILY)
    if unet["cross_attention_dim"] != text["hidden_size"]:
        raise JobError(
            f"{source.config}: the UNet expects text embeddings of width "
            f"{unet['cross_attention_dim']}, the text encoder gives {text['hidden_size']}",
            "take UNet and text encoder from the same model",
        )
    check_channels(source, unet, vae, ONE_FAMILY)


def _family(unet: dict[str, Any]) -> str:
    names = {768: "stable-diffusion-1", 1024: "stable-diffusion-2"}
    return names.get(unet["cross_attention_dim"], "stable-diffusion")
