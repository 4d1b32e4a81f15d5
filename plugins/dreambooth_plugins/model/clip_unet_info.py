"""What models of CLIP text encoders and a UNet are, from their JSON files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.interfaces import LatentSpec, ModelInfo
from dreambooth_plugins.model.folder import part as parts_in
from dreambooth_plugins.model.folder.plausible import (
    SCHEDULE,
    TOKENIZER,
    check_keys,
    check_tokens,
)
from dreambooth_plugins.model.folder.source import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from dreambooth.interfaces import Prediction
    from dreambooth_plugins.model.folder.part import Part
    from dreambooth_plugins.model.folder.source import Source

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
CLIP_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""All attention projections."""
_CROSS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
UNET_PRESETS = {
    "attention": UNET_TARGETS,
    "attention+mlp": (*UNET_TARGETS, "ff.net.0.proj", "ff.net.2"),
    "cross_attention": _CROSS,
}
CLIP_PRESETS = {
    "attention": CLIP_TARGETS,
    "attention+mlp": (*CLIP_TARGETS, "fc1", "fc2"),
}


def described(source: Source, read: Callable[[Source], ModelInfo]) -> ModelInfo:
    """Return what `read` finds; what it trips over in a stranger's files becomes `JobError`."""
    try:
        return read(source)
    except KeyError as error:
        raise JobError(
            f"{source.config}: a configuration has no {error.args[0]!r}",
            "the folder is not what its model_index.json says: copy or download it again",
        ) from error
    except (TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise JobError(
            f"{source.config}: a configuration has a value of another kind ({error})",
            "copy or download the folder again",
        ) from error


def unet_info(
    source: Source, unet: Mapping[str, Any], vae: Mapping[str, Any], **facts: Any
) -> ModelInfo:
    """Return what is the same for all of them; `facts` are the family's own fields."""
    texts = parts_in.names(source.parts, "text_encoders")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    sample = unet["sample_size"]
    schedule = read_schedule(source)
    return ModelInfo(
        prediction=_prediction(source.config, schedule),
        schedule=schedule,
        parts=parts_in.names(source.parts),
        roles=parts_in.roles(source.parts),
        latent=LatentSpec(
            channels=vae["latent_channels"],
            factor=factor,
            multiple=factor * 2 ** (len(unet["down_block_types"]) - 1),
        ),
        resolution=factor * (sample if isinstance(sample, int) else sample[0]),
        adapter_targets={"unet": UNET_TARGETS, **dict.fromkeys(texts, CLIP_TARGETS)},
        adapter_presets={"unet": UNET_PRESETS, **dict.fromkeys(texts, CLIP_PRESETS)},
        **facts,
    )


def read_schedule(source: Source) -> dict[str, Any]:
    """Return the scheduler's configuration, the name of its class included.

    Where the file leaves the name out, model_index.json has it: diffusers goes by that one. What
    the job says of the prediction counts before the file's word.
    """
    folder = source.config
    file = folder / "scheduler" / "scheduler_config.json"
    schedule = read_json(file)
    if schedule.get("_class_name") is None:
        named = class_of(read_json(folder / "model_index.json"), "scheduler")
        schedule = {**schedule, "_class_name": named} if isinstance(named, str) else schedule
    check_keys(file, schedule, SCHEDULE, ("_class_name",))
    return {**schedule, "prediction_type": source.prediction} if source.prediction else schedule


def check_tokenizers(source: Source) -> None:
    """Refuse options of a tokenizer that no tokenizer can have; the files may be left out."""
    for folder in filter(None, (part.tokenizer for part in source.parts)):
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            file = source.config / folder / name
            if file.is_file():
                config = read_json(file)
                check_keys(file, config, TOKENIZER)
                check_tokens(file, config)


def read_index(folder: Path, parts: Iterable[Part]) -> dict[str, Any]:
    """Return model_index.json; `JobError` where `folder` is no diffusers folder."""
    if not folder.is_dir():
        raise JobError(
            f"there is no model at {folder}",
            "model.source takes a diffusers folder, a .safetensors file, a hub id (org/name) "
            "or builtin:emoji-64",
        )
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        files = sorted(file.name for file in folder.glob("*.safetensors"))
        raise JobError(
            f"{folder} is not a diffusers folder: it has no model_index.json",
            f"to load a single file, name it: {folder / files[0]}"
            if files
            else "name the folder that holds model_index.json, "
            + ", ".join(part.name for part in parts),
        )
    return read_json(index_file)


def holds(index: Mapping[str, Any], parts: Iterable[Part]) -> bool:
    """Say whether model_index.json names these parts, each of its class."""
    return all(class_of(index, part.name) == part.cls for part in parts)


def class_of(index: Mapping[str, Any], part: str) -> Any:
    """Return the class of a part in model_index.json, where it stands as [library, class]."""
    entry = index.get(part)
    return entry[-1] if isinstance(entry, list) and entry else None


def check_channels(
    source: Source, unet: Mapping[str, Any], vae: Mapping[str, Any], family: str
) -> None:
    """Refuse a UNet that does not go with the VAE; `family` names what would."""
    if (name := vae.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        raise JobError(f"the VAE is a {name}", f"{family}, whose VAE is an AutoencoderKL")
    if unet["in_channels"] > vae["latent_channels"] and source.vae is None:
        raise JobError(
            f"{source.config} takes {unet['in_channels']} input channels: an inpainting, depth or "
            "editing model",
            "use the plain text-to-image model",
        )
    if unet["in_channels"] != vae["latent_channels"]:
        raise JobError(
            f"the VAE has {vae['latent_channels']} latent channels, "
            f"the UNet takes {unet['in_channels']}",
            "name a VAE of the same family in model.vae",
        )
    if (out := unet.get("out_channels", 4)) != unet["in_channels"]:
        raise JobError(
            f"{source.config}: the UNet takes {unet['in_channels']} channels and gives {out}",
            "use the plain text-to-image model, whose UNet gives what it takes",
        )


def _prediction(folder: Path, schedule: dict[str, Any]) -> Prediction:
    prediction = schedule.get("prediction_type", "epsilon")
    if prediction == "epsilon":
        return "epsilon"
    if prediction == "v_prediction":
        return "v_prediction"
    raise JobError(
        f"{folder}: prediction type {prediction!r} is not one of epsilon, v_prediction",
        "mend scheduler/scheduler_config.json if it is wrong",
    )
