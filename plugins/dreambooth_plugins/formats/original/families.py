"""Which family a single checkpoint file belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.errors import JobError

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth_plugins.common.headers import Header

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
"""Prefixes of the original Stable Diffusion layout."""

CONDITIONER = "conditioner.embedders."
"""What SDXL's text encoders are below: 0 is CLIP-L, 1 is OpenCLIP's bigG."""

_NAMES = {
    "double_blocks.": "Flux",
    "single_transformer_blocks.": "Flux",
    "joint_blocks.": "Stable Diffusion 3",
    "txt_norm.": "Qwen-Image",
    "patch_embedding.": "Wan",
    "cap_embedder.": "Z-Image or Lumina",
    "adaln_single.": "PixArt",
}
"""What some tensor's name begins with, by itself or below `UNET`, in models of other families."""
_OTHER = {f"{above}{name}": family for name, family in _NAMES.items() for above in ("", UNET)}
_SDXL = {CONDITIONER: "SDXL", f"{UNET}label_emb.": "SDXL"}

ONE_FAMILY = "kind stable_diffusion loads Stable Diffusion 1.x and 2.x"
SDXL_FAMILY = "kind sdxl loads the base models of SDXL"


def family_of(header: Header) -> str:
    """Return which kind of model a checkpoint's names are of; empty where none that is known."""
    if any(header.has(prefix) for prefix in _SDXL):
        return "sdxl"
    other = any(header.has(prefix) for prefix in _OTHER)
    return "stable_diffusion" if header.has(UNET) and not other else ""


def check_layout(path: Path, header: Header, *, own_vae: bool) -> None:
    """Raise `JobError` unless the file is a whole SD 1.x/2.x model in the original layout.

    `own_vae`: the job brings another VAE, so that the file need not hold one.
    """
    for prefix, family in (_OTHER | _SDXL).items():
        if header.has(prefix):
            hint = "set model.kind: sdxl" if family == "SDXL" else ONE_FAMILY
            raise JobError(f"{path} is a {family} checkpoint", hint)
    _check_whole(path, header, [UNET, TEXT] if own_vae else [UNET, TEXT, VAE])


def check_sdxl_layout(path: Path, header: Header, *, own_vae: bool) -> None:
    """Raise `JobError` unless the file is a whole SDXL base model in the original layout."""
    for prefix, family in _OTHER.items():
        if header.has(prefix):
            raise JobError(f"{path} is a {family} checkpoint", SDXL_FAMILY)
    if header.has(TEXT):
        raise JobError(
            f"{path} is a Stable Diffusion 1.x or 2.x checkpoint",
            "set model.kind: stable_diffusion",
        )
    if header.has(f"{CONDITIONER}0.model."):
        raise JobError(
            f"{path} is SDXL's refiner, which finishes pictures and draws none from a text alone",
            "name a base model: the refiner is put after it when pictures are drawn",
        )
    texts = [f"{CONDITIONER}0.transformer.", f"{CONDITIONER}1.model."]
    _check_whole(path, header, [UNET, *texts] if own_vae else [UNET, *texts, VAE])


def _check_whole(path: Path, header: Header, needed: list[str]) -> None:
    """Raise `JobError` unless a file is a whole text-to-image model with these prefixes."""
    if any("lora_" in name or ".lora." in name for name in header.shapes):
        raise JobError(
            f"{path} is an adapter (LoRA), not a model", "name the base model it was made for"
        )
    if header.has("down_blocks.") or header.has("text_model.") or header.has("decoder."):
        raise JobError(
            f"{path} is one part of a diffusers folder",
            "name the folder that holds model_index.json",
        )
    if header.has("model_ema.") and not header.has(UNET):
        raise JobError(
            f"{path} holds the UNet's average alone (model_ema.*), under names of its own",
            "take the file that has model.diffusion_model.*, where the average may be put in place",
        )
    if missing := [prefix for prefix in needed if not header.has(prefix)]:
        raise JobError(
            f"{path} is not a whole Stable Diffusion checkpoint: it has no {missing[0]}*",
            "use a full checkpoint; a VAE that is missing can be named in model.vae",
        )
    shape = header.shapes.get(f"{UNET}input_blocks.0.0.weight", ())
    if shape and shape[1] != 4:
        raise JobError(
            f"{path} takes {shape[1]} input channels: an inpainting or editing model",
            "use the plain text-to-image checkpoint (4 input channels)",
        )


def said_prediction(header: Header) -> str | None:
    """Return what a file says it predicts, as schedulers call it; None where it does not say.

    Told by its metadata, or by an empty tensor that v models carry for ComfyUI and Forge.
    """
    said = header.metadata.get("modelspec.prediction_type", "")
    architecture = header.metadata.get("modelspec.architecture", "")
    if "v_pred" in header.shapes or said.startswith("v") or architecture.endswith("-v"):
        return "v_prediction"
    return "epsilon" if said == "epsilon" or "v2-512" in architecture else None


def shipped_config(path: Path, header: Header, told: str | None = None) -> str:
    """Return the name of the shipped configuration that fits a single file.

    SD 1.x has a cross-attention of width 768, SD 2.x of 1024. Whether an SD 2.x file predicts
    epsilon (512 px) or v (768 px) is not in its weights: its metadata must say, or the job, in
    `told`.
    """
    width, prediction = _cross_attention_width(header), told or said_prediction(header)
    if width == 768:
        return "sd15"
    if width == 1024:
        if prediction:
            return "sd21" if prediction == "v_prediction" else "sd20-base"
        raise JobError(
            f"{path} is Stable Diffusion 2.x, but the file does not say what it predicts",
            "set model.config to builtin:sd20-base (512 px, epsilon) or builtin:sd21 "
            "(768 px, v-prediction), or model.prediction to epsilon or v_prediction",
        )
    raise JobError(
        f"{path}: no shipped configuration fits (cross-attention width {width}"
        f"{', prediction ' + prediction if prediction else ''})",
        "name a folder with the diffusers configuration of this model in model.config",
    )


def sdxl_config(header: Header, told: str | None = None) -> str:
    """Return the name of the shipped configuration that fits an SDXL file.

    A file that says nothing of its prediction predicts epsilon, as almost all do.
    """
    return "sdxl-v" if (told or said_prediction(header)) == "v_prediction" else "sdxl"


def _cross_attention_width(header: Header) -> int:
    for name, shape in header.shapes.items():
        if name.startswith(UNET) and name.endswith("attn2.to_k.weight") and shape:
            return shape[-1]
    # A pickle's header has no shapes; SD 2.x names its text encoder the OpenCLIP way.
    return 1024 if header.has(f"{TEXT}model.transformer.") else 768
