"""What a file is that is no LoRA of this model: family and method, from names and shapes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dreambooth.files.headers import Header

SD1, SD2, SDXL = "SD 1.x", "SD 2.x", "SDXL"
FLUX, FLUX2, SD3, QWEN, Z_IMAGE = "Flux", "Flux.2", "SD 3", "Qwen-Image", "Z-Image or Lumina"
FAMILIES = {
    "stable-diffusion-1": SD1, "stable-diffusion-2": SD2, "sdxl": SDXL, "flux": FLUX, "sd3": SD3,
    "z_image": Z_IMAGE, "flux2_klein": FLUX2, "qwen_image": QWEN,
}  # fmt: skip
"""What models here are called among LoRAs."""
TWO_STREAMS = f"{FLUX}, {FLUX2}, {SD3} or {QWEN}"
"""Whose two-stream attention has the same names, where widths do not tell."""
_BY_WIDTH = {768: SD1, 1024: SD2, 2048: SDXL}
"""Families by the inputs of a cross-attention's keys and values."""
_CROSS = re.compile(r"attn2[._]to_[kv][._].*?(lora_down|lora_A|lora\.down|_lora\.down)")
_NAMES = (  # the first one that is found counts; metadata says less than names do
    (re.compile(r"lora_te2_|text_encoder_2\.|add_embedding"), SDXL),
    (re.compile(r"attentions[._]\d+[._]transformer_blocks[._][1-9]"), SDXL),
    (re.compile(r"(input|output)_blocks_\d+_1_transformer_blocks_[1-9]"), SDXL),
    (re.compile(r"to_qkv_mlp_proj|double_stream_modulation"), FLUX2),
    (re.compile(r"double_blocks|single_blocks|single_transformer_blocks"), FLUX),
    (re.compile(r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)"), QWEN),
    (re.compile(r"joint_blocks|context_block"), SD3),
    (re.compile(r"blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]"), "Wan"),
    (re.compile(r"layers[._]\d+[._](attention|feed_forward)[._]"), Z_IMAGE),
)
_JOINT = re.compile(r"transformer_blocks[._]\d+[._]attn[._]add_")
_JOINT_DOWN = re.compile(r"transformer_blocks[._]\d+[._]attn[._]\w+?[._](lora_A|lora_down|down)")
_SD3_WIDTHS = {1536, 2432}
_LINEAR1 = re.compile(r"single_blocks[._]\d+[._]linear1\.(lora_B|lora_up)")
_FLUX2_ROWS = {27648, 36864, 55296}
"""Of Klein 4B, Klein 9B and dev."""
_VERSIONS = (
    ("sdxl", SDXL), ("stable-diffusion-xl", SDXL), ("flux2", FLUX2), ("flux-2", FLUX2),
    ("flux", FLUX), ("sd3", SD3), ("stable-diffusion-3", SD3), ("sd_v1", SD1),
    ("stable-diffusion-v1", SD1), ("sd_v2", SD2),
    ("stable-diffusion-v2", SD2), ("wan", "Wan"), ("qwen", QWEN),
)  # fmt: skip
_METHODS = (
    (re.compile(r"\.(diff|diff_b|set_weight|w_norm|b_norm)$"), "differences of whole weights"),
    (re.compile(r"\.(oft_blocks|oft_diag|oft_R\b)"), "an OFT"),
    (re.compile(r"\.boft_"), "a BOFT"),
    (re.compile(r"\.on_input$|\.ia3_l"), "an IA3"),
    (re.compile(r"\.[ab][12]\.weight$"), "a GLoRA"),
    (re.compile(r"\.lora_E\b"), "an AdaLoRA"),
    (re.compile(r"\.vera_lambda_"), "a VeRA"),
    (
        re.compile(r"^(model\.diffusion|first_stage|cond_stage)_model\."),
        "a whole model",
    ),
    (re.compile(r"^control_model\.|^controlnet_"), "a ControlNet"),
    (re.compile(r"^(emb_params|string_to_param|clip_[lg]$|<)"), "an embedding of a word"),
)


def family(header: Header) -> str:
    """Return the family a LoRA is for, "" where nothing tells."""
    names = "\n".join(header.shapes)
    for pattern, found in _NAMES:
        if pattern.search(names):
            return FLUX2 if found == FLUX and _is_flux2(header) else found
    if _JOINT.search(names):
        return _joint(header)
    for name, shape in header.shapes.items():
        if _CROSS.search(name) and len(shape) > 1 and shape[1] in _BY_WIDTH:
            return _BY_WIDTH[shape[1]]
    return _said(header.metadata)


def _is_flux2(header: Header) -> bool:
    """Tell the two by the rows of a single block's first layer: 7 widths, or 9 of them."""
    rows = {shape[0] for name, shape in header.shapes.items() if _LINEAR1.search(name) and shape}
    return bool(rows & _FLUX2_ROWS)


def _joint(header: Header) -> str:
    """Return whose two-stream attention it is, as far as widths and metadata tell."""
    for name, shape in header.shapes.items():
        if _JOINT_DOWN.search(name) and len(shape) > 1 and shape[1] in _SD3_WIDTHS:
            return SD3
    return TWO_STREAMS


def _said(metadata: Mapping[str, str]) -> str:
    for key in ("ss_base_model_version", "modelspec.architecture"):
        said = metadata.get(key, "").lower()
        for begin, found in _VERSIONS:
            if said.startswith(begin):
                return found
    return ""


def method(names: list[str]) -> str:
    """Return what tensors make up that are no low-rank factors; "" where nothing tells."""
    for pattern, found in _METHODS:
        if any(pattern.search(name) for name in names):
            return found
    return ""


def fits(found: str, own: str) -> bool:
    """Say whether a file that is for `found` may be one for the family `own`."""
    return found == own or (found == TWO_STREAMS and own in (FLUX, FLUX2, SD3, QWEN))


def with_article(family: str, method: str = "LoRA") -> str:
    """Return `an SDXL LoRA`, `a Flux LoRA`."""
    return f"{'an' if family.startswith('SD') else 'a'} {family} {method}"
