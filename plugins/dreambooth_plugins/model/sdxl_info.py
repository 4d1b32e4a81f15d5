"""What an SDXL model is, from its JSON files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.interfaces import Usual
from dreambooth_plugins.formats.original.families import SDXL_FAMILY
from dreambooth_plugins.formats.original.limits import original_refusal
from dreambooth_plugins.model import parts_of
from dreambooth_plugins.model.clip_unet_info import (
    check_channels,
    check_tokenizers,
    class_of,
    described,
    holds,
    read_index,
    unet_info,
)
from dreambooth_plugins.model.folder.kinds import one_of, whole
from dreambooth_plugins.model.folder.plausible import TEXT_ENCODER, UNET, VAE, check_network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreambooth.interfaces import ModelInfo
    from dreambooth_plugins.model.folder.source import Source

IDS = 6
"""Numbers a row is conditioned on: original size, crop corner and target size, (height, width)."""
_UNET = {
    **UNET,
    "addition_embed_type": one_of("text_time"),
    "addition_time_embed_dim": whole(1, 16384),
    "projection_class_embeddings_input_dim": whole(1, 2**20),
}
_KINDS = {"unet": _UNET, "text_encoder": TEXT_ENCODER, "text_encoder_2": TEXT_ENCODER, "vae": VAE}
_REAL_WIDTH = 2048
"""Of the texts of the published model and all that is made from it."""


_USUAL = Usual(
    source="diffusers' DreamBooth guide for SDXL (README_sdxl.md) and its LoRA script",
    lora=True,
    lora_parts=("unet",),
    lora_rank=4,
    steps=500,
    accumulation=4,
    sampling_steps=25,
)


def model_info(source: Source) -> ModelInfo:
    """Describe the model; `JobError` where it is incomplete or of another family."""
    check_index(source.config)
    return described(source, _read)


def _read(source: Source) -> ModelInfo:
    configs = {part.name: source.part_config(part.name) for part in source.parts}
    for part, config in configs.items():
        file = source.config_folder(part) / "config.json"
        if part == "unet" and config.get("addition_embed_type") != "text_time":
            raise JobError(
                f"{source.config}: its UNet takes no sizes and no pooled text: it is none of SDXL",
                SDXL_FAMILY,
            )
        check_network(part, file, config, _KINDS[part])
    unet, vae = configs["unet"], configs["vae"]
    check_tokenizers(source)
    _check_fit(source, configs)
    names = {"kohya": "sdxl_base_v1-0", "modelspec": "stable-diffusion-xl-v1-base"}
    known = unet["cross_attention_dim"] == _REAL_WIDTH
    return unet_info(
        source,
        unet,
        vae,
        family="sdxl",
        blocks=_blocks(unet),
        layouts={
            "original": original_refusal(unet, vae, named=("addition_embed_type",)),
            "kohya": "",
        },
        pipeline="StableDiffusionXLPipeline",
        names={
            "title": "SDXL",
            **(names if known else {}),
        },
        learns_words={"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
        guidance_default=5.0,
        usual=_USUAL,
    )


def _blocks(unet: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the two blocks that decide content and style: the first two attentions of the first
    level going up (Frenkel et al. 2024, arXiv:2403.14572)."""
    layers = unet.get("layers_per_block", 2)
    if not unet["up_block_types"][0].startswith("CrossAttn") or layers < 1:
        return {}
    return {
        "content": ("unet.up_blocks.0.attentions.0.*",),
        "style": ("unet.up_blocks.0.attentions.1.*",),
    }


def check_index(folder: Path) -> None:
    """Raise `JobError` unless `folder` is a diffusers folder of an SDXL base model."""
    index = read_index(folder, parts_of.SDXL)
    name = str(index.get("_class_name", "an unknown pipeline"))
    if "Inpaint" in name:
        raise JobError(
            f"{folder} holds an inpainting model ({name})", "use the plain text-to-image model"
        )
    if index.get("requires_aesthetics_score") or (
        class_of(index, "text_encoder_2") and not class_of(index, "text_encoder")
    ):
        raise JobError(
            f"{folder} is SDXL's refiner, which finishes pictures and draws none from a text alone",
            "name a base model: the refiner is put after it when pictures are drawn",
        )
    if not holds(index, parts_of.SDXL):
        plain = "text_encoder" in index and not class_of(index, "text_encoder_2")
        hint = "set model.kind: stable_diffusion" if plain else SDXL_FAMILY
        raise JobError(f"{folder} holds a {name}", hint)


def _check_fit(source: Source, configs: Mapping[str, dict[str, Any]]) -> None:
    unet, vae = configs["unet"], configs["vae"]
    widths = [configs[part]["hidden_size"] for part in ("text_encoder", "text_encoder_2")]
    if unet["cross_attention_dim"] != sum(widths):
        raise JobError(
            f"{source.config}: the UNet expects text embeddings of width "
            f"{unet['cross_attention_dim']}, the text encoders give {widths[0]} and {widths[1]}",
            "take UNet and text encoders from the same model",
        )
    pooled = configs["text_encoder_2"].get("projection_dim") or 0
    wanted = unet["projection_class_embeddings_input_dim"]
    given = IDS * unet["addition_time_embed_dim"] + pooled
    if wanted != given:
        raise JobError(
            f"{source.config}: the UNet expects {wanted} numbers of sizes and pooled text, and "
            f"gets {given}",
            "it is another kind of model (the refiner has five sizes), or of mixed parts",
        )
    check_channels(source, unet, vae, SDXL_FAMILY)
