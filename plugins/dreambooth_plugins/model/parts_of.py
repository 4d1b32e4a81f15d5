"""The parts of the families that come with the trainer."""

from __future__ import annotations

from dreambooth_plugins.model.folder.part import Part

_UNET = Part(
    "unet", "denoiser", "diffusers", "UNet2DConditionModel", original="model.diffusion_model."
)
_VAE = Part("vae", "vae", "diffusers", "AutoencoderKL", original="first_stage_model.")

STABLE_DIFFUSION = (
    _UNET,
    Part(
        "text_encoder", "text_encoders", "transformers", "CLIPTextModel", "tokenizer",
        "text_model.", "cond_stage_model.",
    ),
    _VAE,
)  # fmt: skip
"""Stable Diffusion 1.x and 2.x. transformers 5 dropped `text_model.` from CLIPTextModel's names."""

SDXL = (
    _UNET,
    Part(
        "text_encoder", "text_encoders", "transformers", "CLIPTextModel", "tokenizer",
        "text_model.", "conditioner.embedders.0.",
    ),
    Part(
        "text_encoder_2", "text_encoders", "transformers", "CLIPTextModelWithProjection",
        "tokenizer_2", "", "conditioner.embedders.1.",
    ),
    _VAE,
)  # fmt: skip
"""SDXL: CLIP-L, and OpenCLIP's bigG, whose names keep `text_model.` in memory."""
