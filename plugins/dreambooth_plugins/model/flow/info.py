"""What flow-matching models are, from their JSON files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.interfaces import FlowSpec, LatentSpec, ModelInfo
from dreambooth_plugins.model.clip_unet_info import CLIP_PRESETS, CLIP_TARGETS, class_of, read_index
from dreambooth_plugins.model.folder import part as parts_in
from dreambooth_plugins.model.folder.kinds import FLAG, Kind, many, none_or, one_of, real, whole
from dreambooth_plugins.model.folder.plausible import SHARE, VAE, check_keys, check_network
from dreambooth_plugins.model.folder.source import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreambooth_plugins.model.folder.part import Part
    from dreambooth_plugins.model.folder.source import Source

WIDTH, LAYERS, HEADS = whole(1, 65536), whole(1, 512), whole(1, 1024)
AXES = many(whole(2, 1024), 8)
JOINT_ATTENTION = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
)  # fmt: skip
"""Projections of an attention that pictures and texts share, each with its own."""
NOT = Kind("false: these families are not turned round", lambda v: v is None or v is False)
SCHEDULE: Mapping[str, Kind] = {
    "_class_name": one_of("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    "base_image_seq_len": whole(1, 2**20),
    "base_shift": none_or(real(-20.0, 20.0)),
    "invert_sigmas": NOT,
    "max_image_seq_len": whole(2, 2**20),
    "max_shift": none_or(real(-20.0, 20.0)),
    "num_train_timesteps": whole(1, 100_000),
    "shift": real(0.0, 1000.0, between=True),
    "shift_terminal": none_or(real(0.0, 1.0)),
    "time_shift_type": one_of("exponential", "linear"),
    "use_beta_sigmas": none_or(FLAG),
    "use_dynamic_shifting": none_or(FLAG),
    "use_exponential_sigmas": none_or(FLAG),
    "use_karras_sigmas": none_or(FLAG),
}
T5: Mapping[str, Kind] = {
    "d_ff": WIDTH,
    "d_kv": WIDTH,
    "d_model": WIDTH,
    "dropout_rate": SHARE,
    "num_heads": HEADS,
    "num_layers": LAYERS,
    "vocab_size": whole(3, 2**21),
}
LANGUAGE_MODEL: Mapping[str, Kind] = {
    "attention_dropout": SHARE,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": HEADS,
    "vocab_size": whole(3, 2**21),
}


def read_schedule(folder: Path) -> dict[str, Any]:
    """Return the scheduler's configuration; `JobError` where it is no flow's."""
    file = folder / "scheduler" / "scheduler_config.json"
    schedule = read_json(file)
    check_keys(file, schedule, SCHEDULE, ("_class_name",))
    return schedule


def check_index(folder: Path, parts: tuple[Part, ...], pipeline: str, kind: str) -> None:
    """Raise `JobError` unless `folder` is a diffusers folder of that pipeline with these parts."""
    index = read_index(folder, parts)
    name = str(index.get("_class_name", "an unknown pipeline"))
    if name != pipeline:
        raise JobError(
            f"{folder} holds a {name}", f"model.kind: {kind} takes a {pipeline}; auto finds out"
        )
    for part in parts:
        found = class_of(index, part.name)
        if found != part.cls and not (part.optional and not found):
            raise JobError(
                f"{folder}: its {part.name} is {found or 'absent'}, where {kind} has a {part.cls}",
                "copy or download the folder again",
            )


def check_parts(
    source: Source, kinds: Mapping[str, Mapping[str, Kind]]
) -> dict[str, dict[str, Any]]:
    """Return every part's config.json, held against the kinds of its keys by part.

    CLIP encoders and the VAE have kinds of their own.
    """
    configs = {part.name: source.part_config(part.name) for part in source.parts}
    for part in source.parts:
        file, config = source.config_folder(part.name) / "config.json", configs[part.name]
        if part.name in kinds:
            check_keys(file, config, kinds[part.name])
        elif part.role == "vae":
            check_network("vae", file, config, VAE)
        else:
            check_network("text_encoder", file, config)
    return configs


def same(source: Source, what: str, wanted: Any, given: Any) -> None:
    """Raise `JobError` where the denoiser and another part differ in a size they share."""
    if wanted != given:
        raise JobError(
            f"{source.config}: the transformer expects {what} of {wanted}, and gets {given}",
            "take all parts from the same model",
        )


def flow_info(
    source: Source,
    *,
    latent: LatentSpec,
    presets: Mapping[str, tuple[str, ...]],
    flow: FlowSpec,
    schedule: Mapping[str, Any] | None = None,
    **facts: Any,
) -> ModelInfo:
    """Return what is the same for all of them; `facts` are the family's own fields.

    `presets` are the denoiser's, `attention` among them; `schedule` is for families whose own
    scheduler_config.json is of another kind.
    """
    texts = source.in_role("text_encoders")
    clips = [part.name for part in texts if not part.frozen]
    return ModelInfo(
        prediction="flow",
        schedule=schedule or read_schedule(source.config),
        parts=parts_in.names(source.parts),
        roles=parts_in.roles(source.parts),
        latent=latent,
        adapter_targets={
            "transformer": presets["attention"],
            **dict.fromkeys(clips, CLIP_TARGETS),
        },
        adapter_presets={"transformer": presets, **dict.fromkeys(clips, CLIP_PRESETS)},
        flow=flow,
        frozen={part.name: part.frozen for part in texts if part.frozen},
        scheduler="flow",
        sampler="flow",
        **facts,
    )
