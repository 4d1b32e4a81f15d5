"""What the JSON files of a Stable Diffusion folder may say: each key's kind and range.

The libraries believe what stands there: ten million layers are built until memory is full, a
missing name is missed when the result is written. A key that is wrong is told at its file and key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.helpers.text import quoted
from dreambooth_plugins.model.folder.kinds import (
    FLAG,
    NULL,
    TEXT,
    Kind,
    either,
    many,
    none_or,
    one_of,
    real,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MEND = "correct it there, or copy or download the folder again"
MAX_LEVELS, MAX_LAYERS, MAX_DEPTH = 8, 64, 1024
"""Levels of a network, layers on one of them, and transformer blocks in all of it (SD: 16)."""
MAX_TIMESTEPS = 100_000

CHANNELS = many(whole(1, 16384), MAX_LEVELS)
SIDE = whole(1, 4096)
SIDES = either(SIDE, many(SIDE, 2))
HEADS = none_or(either(whole(1, 1024), many(whole(1, 1024), MAX_LEVELS)))
LAYERS = either(whole(1, MAX_LAYERS), many(whole(1, MAX_LAYERS), MAX_LEVELS))
DEPTHS = either(LAYERS, many(LAYERS, MAX_LEVELS))
GROUPS = none_or(whole(1, 4096))
EPS = real(0.0, 1.0)
SHARE = real(0.0, 0.999)
ODD_KERNEL = Kind("1, 3, 5 or 7", lambda v: v in (1, 3, 5, 7) and not isinstance(v, bool))
BETA = real(0.0, 1.0, between=True)
TOKEN_ID = none_or(either(whole(-1, 2**31), many(whole(-1, 2**31), 64)))
ACTIVATION = one_of("silu", "swish", "mish", "gelu", "relu")
HIDDEN_ACTIVATION = one_of("quick_gelu", "gelu", "gelu_new", "relu", "silu")

UNET: Mapping[str, Kind] = {
    "_class_name": none_or(one_of("UNet2DConditionModel")),
    "act_fn": ACTIVATION,
    "addition_embed_type": NULL,
    "attention_head_dim": HEADS,
    "block_out_channels": CHANNELS,
    "center_input_sample": FLAG,
    "class_embed_type": NULL,
    "conv_in_kernel": ODD_KERNEL,
    "conv_out_kernel": ODD_KERNEL,
    "cross_attention_dim": whole(1, 16384),
    "down_block_types": many(TEXT, MAX_LEVELS),
    "downsample_padding": whole(0, 1),
    "dropout": SHARE,
    "dual_cross_attention": FLAG,
    "encoder_hid_dim_type": NULL,
    "flip_sin_to_cos": FLAG,
    "freq_shift": real(-1.0, 1.0),
    "in_channels": whole(1, 1024),
    "layers_per_block": LAYERS,
    "mid_block_scale_factor": real(1e-3, 1e3),
    "norm_eps": EPS,
    "norm_num_groups": GROUPS,
    "num_attention_heads": HEADS,
    "num_class_embeds": NULL,
    "out_channels": whole(1, 1024),
    "quantization_config": NULL,
    "resnet_out_scale_factor": real(1e-3, 1e3),
    "sample_size": SIDES,
    "time_embedding_dim": none_or(whole(2, 65536)),
    "transformer_layers_per_block": DEPTHS,
    "up_block_types": many(TEXT, MAX_LEVELS),
    "upcast_attention": none_or(FLAG),
    "use_linear_projection": FLAG,
}
TEXT_ENCODER: Mapping[str, Kind] = {
    "attention_dropout": SHARE,
    "bos_token_id": TOKEN_ID,
    "eos_token_id": whole(-1, 2**31),  # sought in every prompt
    "hidden_act": HIDDEN_ACTIVATION,
    "hidden_size": whole(1, 16384),
    "initializer_factor": real(0.0, 1e3),
    "initializer_range": real(0.0, 1e3),
    "intermediate_size": whole(1, 65536),
    "layer_norm_eps": EPS,
    "max_position_embeddings": whole(3, 65536),
    "num_attention_heads": whole(1, 1024),
    "num_hidden_layers": whole(1, 256),
    "pad_token_id": TOKEN_ID,
    "projection_dim": none_or(whole(0, 65536)),
    "quantization_config": NULL,
    "vocab_size": whole(3, 2**21),
}
VAE: Mapping[str, Kind] = {
    "act_fn": ACTIVATION,
    "block_out_channels": CHANNELS,
    "down_block_types": many(TEXT, MAX_LEVELS),
    "in_channels": whole(3, 3),
    "latent_channels": whole(1, 1024),
    "layers_per_block": whole(1, MAX_LAYERS),
    "mid_block_add_attention": FLAG,
    "norm_num_groups": whole(1, 4096),
    "out_channels": whole(3, 3),
    "quantization_config": NULL,
    "sample_size": SIDES,
    "scaling_factor": real(1e-6, 1e6),
    "shift_factor": none_or(real(-1e6, 1e6)),
    "up_block_types": many(TEXT, MAX_LEVELS),
    "use_post_quant_conv": FLAG,
    "use_quant_conv": FLAG,
}
SCHEDULERS = (
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler",
    "UniPCMultistepScheduler",
)  # fmt: skip
"""diffusers' schedulers on discrete timesteps: what a Stable Diffusion pipeline opens with."""
SCHEDULE: Mapping[str, Kind] = {
    "_class_name": one_of(*SCHEDULERS),
    "beta_end": BETA,
    "beta_schedule": TEXT,
    "beta_start": BETA,
    "final_sigmas_type": one_of("zero", "sigma_min"),
    "interpolation_type": one_of("linear", "log_linear"),
    "num_train_timesteps": whole(1, MAX_TIMESTEPS),
    "prediction_type": TEXT,
    "rescale_betas_zero_snr": none_or(FLAG),
    "set_alpha_to_one": FLAG,
    "sigma_max": none_or(real(0.0, 1e6)),
    "sigma_min": none_or(real(0.0, 1e6)),
    "skip_prk_steps": FLAG,
    "solver_order": whole(1, 3),
    "steps_offset": whole(0, 1),
    "timestep_spacing": one_of("linspace", "leading", "trailing"),
    "trained_betas": none_or(many(BETA, MAX_TIMESTEPS)),
    "use_beta_sigmas": none_or(FLAG),
    "use_exponential_sigmas": none_or(FLAG),
    "use_karras_sigmas": none_or(FLAG),
    "use_lu_lambdas": none_or(FLAG),
}
"""Keys that a training run or a sampler goes by."""
TOKENIZER: Mapping[str, Kind] = {
    "model_max_length": none_or(real(2, 1e31)),
    **{
        name: none_or(
            Kind("a text, or what describes a token", lambda v: isinstance(v, str | dict))
        )
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
    },
}
"""A length of 1e30 is how transformers writes that there is none."""
TOKEN_OPTIONS = frozenset(
    {"__type", "content", "id", "lstrip", "normalized", "rstrip", "single_word", "special"}
)
CONFIGS = {"unet": UNET, "text_encoder": TEXT_ENCODER, "vae": VAE}
NEEDED = {
    "unet": (
        "block_out_channels",
        "cross_attention_dim",
        "down_block_types",
        "in_channels",
        "sample_size",
        "up_block_types",
    ),
    "text_encoder": ("hidden_size",),
    "vae": ("block_out_channels", "latent_channels"),
}
"""Keys that our own arithmetic takes from the file; the libraries have defaults for the others."""
ONE_BLOCK = 1
"""Blocks, down and up, of a VAE whose file names none: diffusers' default, whatever its levels."""


def check_keys(
    file: Path, config: Mapping[str, Any], kinds: Mapping[str, Kind], needed: tuple[str, ...] = ()
) -> None:
    """Raise `JobError` for the first key of a configuration that is missing or of another kind."""
    for key in needed:
        if key not in config:
            raise JobError(f'{file} has no "{key}"', MEND)
    for key, kind in kinds.items():
        if key in config and not kind.fits(config[key]):
            value = quoted(config[key])
            raise JobError(f'{file}: "{key}" is {value}, and must be {kind.words}', MEND)


def check_tokens(file: Path, config: Mapping[str, Any]) -> None:
    """Raise `JobError` where a tokenizer's file describes a token by an option that none has.

    The tokenizers' library writes the names of such options to the terminal as they are, a
    stranger's control characters included.
    """
    added = config.get("added_tokens_decoder")
    described = dict(added) if isinstance(added, dict) else {}
    if file.name == "special_tokens_map.json":
        described |= config
        described.pop("extra_special_tokens", None)  # named tokens, not options of one
    for name, value in described.items():
        for token in value if isinstance(value, list) else [value]:
            unknown = sorted(set(token) - TOKEN_OPTIONS) if isinstance(token, dict) else []
            if unknown:
                options = f"{quoted(name)} has an option {quoted(unknown[0])}"
                raise JobError(f"{file}: {options}, which no token has", MEND)


def check_network(
    part: str, file: Path, config: Mapping[str, Any], kinds: Mapping[str, Kind] | None = None
) -> None:
    """Raise `JobError` where a part's configuration describes no network, or an absurd one.

    `kinds` are those of its keys, where the family has others than Stable Diffusion.
    """
    part = "text_encoder" if part.startswith("text_encoder") else part
    if not kinds and part == "unet" and config.get("addition_embed_type") == "text_time":
        return  # SDXL, which is told by its name
    if part == "vae" and config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        return  # told by its name as well
    check_keys(file, config, kinds or CONFIGS[part], NEEDED[part])
    if part == "text_encoder":
        heads, width = config.get("num_attention_heads", 8), config["hidden_size"]
        if width % heads:
            raise JobError(f'{file}: "hidden_size" {width} is no multiple of {heads} heads', MEND)
        return
    channels = config["block_out_channels"]
    for key in ("down_block_types", "up_block_types"):
        named = len(config[key]) if key in config else ONE_BLOCK  # the UNet's are needed
        if named != len(channels):
            counts = f"{named} blocks for {len(channels)} levels (block_out_channels)"
            raise JobError(f'{file}: "{key}" names {counts}', MEND)
    groups = config.get("norm_num_groups", 32)
    if groups is not None and any(count % groups for count in channels):
        raise JobError(
            f'{file}: "norm_num_groups" is {groups}, which does not divide {channels}', MEND
        )
    if part == "unet":
        _check_levels(file, config, len(channels))


def _check_levels(file: Path, config: Mapping[str, Any], levels: int) -> None:
    each = (
        "attention_head_dim",
        "layers_per_block",
        "num_attention_heads",
        "transformer_layers_per_block",
    )
    for key in each:
        value = config.get(key)
        if isinstance(value, list) and len(value) != levels:
            raise JobError(f'{file}: "{key}" has {len(value)} entries for {levels} levels', MEND)
    layers = _greatest(config.get("layers_per_block", 2))
    depth = _greatest(config.get("transformer_layers_per_block", 1))
    if 2 * levels * (layers + 1) * depth > MAX_DEPTH:
        raise JobError(
            f'{file}: "layers_per_block" and "transformer_layers_per_block" make a UNet of over '
            f"{MAX_DEPTH} blocks",
            MEND,
        )


def _greatest(value: Any) -> int:
    return max(map(_greatest, value)) if isinstance(value, list) else int(value)
