"""The parts of the families that predict a flow."""

from __future__ import annotations

from dreambooth_plugins.model.folder.part import Part

T5, LANGUAGE_MODEL = "a T5 encoder", "a language model"
VAE = Part("vae", "vae", "diffusers", "AutoencoderKL")


def _clip(name: str, tokenizer: str, *, projected: bool) -> Part:
    """transformers 5 dropped `text_model.` from the names of the class without a projection."""
    cls = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    prefix = "" if projected else "text_model."
    return Part(name, "text_encoders", "transformers", cls, tokenizer, prefix)


def _t5(name: str, tokenizer: str, *, optional: bool = False) -> Part:
    return Part(
        name, "text_encoders", "transformers", "T5EncoderModel", tokenizer,
        tokenizer_cls="T5TokenizerFast", frozen=T5, optional=optional,
    )  # fmt: skip


def _language_model(cls: str, *, renamed: bool = False) -> Part:
    return Part(
        "text_encoder", "text_encoders", "transformers", cls, "tokenizer",
        tokenizer_cls="Qwen2TokenizerFast", frozen=LANGUAGE_MODEL, renamed=renamed,
    )  # fmt: skip


def _denoiser(cls: str) -> Part:
    return Part("transformer", "denoiser", "diffusers", cls)


FLUX = (
    _denoiser("FluxTransformer2DModel"),
    _clip("text_encoder", "tokenizer", projected=False),
    _t5("text_encoder_2", "tokenizer_2"),
    VAE,
)
SD3 = (
    _denoiser("SD3Transformer2DModel"),
    _clip("text_encoder", "tokenizer", projected=True),
    _clip("text_encoder_2", "tokenizer_2", projected=True),
    _t5("text_encoder_3", "tokenizer_3", optional=True),
    VAE,
)
Z_IMAGE = (_denoiser("ZImageTransformer2DModel"), _language_model("Qwen3Model"), VAE)
FLUX2_KLEIN = (
    _denoiser("Flux2Transformer2DModel"),
    _language_model("Qwen3ForCausalLM"),
    Part("vae", "vae", "diffusers", "AutoencoderKLFlux2"),
)
KLEIN_LAYERS = (9, 18, 27)
"""Layers of the language model whose states are the text, side by side."""
QWEN_IMAGE = (
    _denoiser("QwenImageTransformer2DModel"),
    _language_model("Qwen2_5_VLForConditionalGeneration", renamed=True),
    Part("vae", "vae", "diffusers", "AutoencoderKLQwenImage"),
)
