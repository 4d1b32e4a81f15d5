"""What a Stable Diffusion model is, from its JSON files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.interfaces import LatentSpec, ModelInfo
from dreambooth_plugins.formats.original.families import ONE_FAMILY
from dreambooth_plugins.formats.original.limits import original_refusal
from dreambooth_plugins.model.folder.plausible import (
    SCHEDULE,
    TOKENIZER,
    check_keys,
    check_network,
    check_tokens,
)
from dreambooth_plugins.model.folder.source import PARTS, read_json

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.interfaces import Prediction
    from dreambooth_plugins.model.folder.source import Source

ADAPTER_TARGETS = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
}
"""All attention projections."""

_CROSS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
ADAPTER_PRESETS = {
    "unet": {
        "attention": ADAPTER_TARGETS["unet"],
        "attention+mlp": (*ADAPTER_TARGETS["unet"], "ff.net.0.proj", "ff.net.2"),
        "cross_attention": _CROSS,
    },
    "text_encoder": {
        "attention": ADAPTER_TARGETS["text_encoder"],
        "attention+mlp": (*ADAPTER_TARGETS["text_encoder"], "fc1", "fc2"),
    },
}

_CLASSES = {
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "vae": "AutoencoderKL",
}


def model_info(source: Source) -> ModelInfo:
    """Describe the model; `JobError` where it is incomplete or of another family."""
    check_index(source.config)
    try:
        return _read(source)
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


def _read(source: Source) -> ModelInfo:
    configs = {part: source.part_config(part) for part in PARTS}
    for part in PARTS:
        check_network(part, source.config_folder(part) / "config.json", configs[part])
    unet, text, vae = (configs[part] for part in PARTS)
    schedule = _schedule(source.config)
    _check_tokenizer(source.config)
    _check_fit(source, unet, text, vae)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    sample = unet["sample_size"]
    return ModelInfo(
        family=_family(unet),
        prediction=_prediction(source.config, schedule),
        schedule=schedule,
        parts=PARTS,
        roles={"denoiser": ("unet",), "text_encoders": ("text_encoder",), "vae": ("vae",)},
        latent=LatentSpec(
            channels=vae["latent_channels"],
            factor=factor,
            multiple=factor * 2 ** (len(unet["down_block_types"]) - 1),
        ),
        resolution=factor * (sample if isinstance(sample, int) else sample[0]),
        adapter_targets=ADAPTER_TARGETS,
        adapter_presets=ADAPTER_PRESETS,
        blocks=_blocks(unet),
        layouts={"original": original_refusal(unet, vae)},
    )


def _schedule(folder: Path) -> dict[str, Any]:
    """Return the scheduler's configuration, the name of its class included.

    Where the file leaves the name out, model_index.json has it: diffusers goes by that one.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    schedule = read_json(file)
    if schedule.get("_class_name") is None:
        named = _class_of(read_json(folder / "model_index.json"), "scheduler")
        schedule = {**schedule, "_class_name": named} if isinstance(named, str) else schedule
    check_keys(file, schedule, SCHEDULE, ("_class_name",))
    return schedule


def _check_tokenizer(folder: Path) -> None:
    """Refuse options of a tokenizer that no tokenizer can have; the files may be left out."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / "tokenizer" / name
        if file.is_file():
            config = read_json(file)
            check_keys(file, config, TOKENIZER)
            check_tokens(file, config)


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
            else "name the folder that holds model_index.json, unet, vae and text_encoder",
        )
    index = read_json(index_file)
    got = {part: _class_of(index, part) for part in PARTS}
    if got != _CLASSES or _class_of(index, "text_encoder_2"):
        name = index.get("_class_name", "an unknown pipeline")
        raise JobError(f"{folder} holds a {name}", f"{ONE_FAMILY} (StableDiffusionPipeline)")


def _class_of(index: dict[str, Any], part: str) -> Any:
    """Return the class of a part in model_index.json, where it stands as [library, class]."""
    entry = index.get(part)
    return entry[-1] if isinstance(entry, list) and entry else None


def _check_fit(
    source: Source, unet: dict[str, Any], text: dict[str, Any], vae: dict[str, Any]
) -> None:
    if (name := vae.get("_class_name", _CLASSES["vae"])) != _CLASSES["vae"]:
        raise JobError(f"the VAE is a {name}", f"{ONE_FAMILY}, whose VAE is an AutoencoderKL")
    if unet.get("addition_embed_type") == "text_time":
        raise JobError(f"{source.config} holds an SDXL UNet", ONE_FAMILY)
    if unet["cross_attention_dim"] != text["hidden_size"]:
        raise JobError(
            f"{source.config}: the UNet expects text embeddings of width "
            f"{unet['cross_attention_dim']}, the text encoder gives {text['hidden_size']}",
            "take UNet and text encoder from the same model",
        )
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


def _family(unet: dict[str, Any]) -> str:
    names = {768: "stable-diffusion-1", 1024: "stable-diffusion-2"}
    return names.get(unet["cross_attention_dim"], "stable-diffusion")


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
