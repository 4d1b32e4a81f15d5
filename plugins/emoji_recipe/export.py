"""The trained parts as a `StableDiffusionPipeline`: sampled from, and written as fp16 folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from dreambooth.errors import JobError
from dreambooth.files import new_folder, write_json
from dreambooth.helpers.random import generator
from dreambooth_plugins.model import parts_of
from dreambooth_plugins.model.folder.saving import model_index, save_weights
from dreambooth_plugins.model.folder.tokenizer import save_tokenizer
from dreambooth_plugins.model.stable_diffusion_loaded import NO_CHECKER
from emoji_recipe import autoencoder, clip, denoiser, loop
from emoji_recipe.grounds import EDGE
from emoji_recipe.objectives import Diffusion, objective
from emoji_recipe.words import open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from emoji_recipe.settings import RecipeSettings

PARTS = {part.name: part for part in parts_of.STABLE_DIFFUSION}
PIPELINE, JUDGE = "emoji-128", "emoji-128-clip"
TRAINING = "training.json"
"""What the pipeline's folder says of its training: the step, and the settings."""


def run(settings: RecipeSettings) -> None:
    """Stage `export`: write the averaged weights of the denoiser's state as folders.

    Raises:
        JobError: the settings' network and objective are not Stable Diffusion's.
    """
    chosen = settings.denoiser
    aim = objective(chosen.objective, chosen.min_snr_gamma)
    if chosen.network != "unet" or not isinstance(aim, Diffusion):
        raise JobError(
            f"a {chosen.network} that predicts {chosen.objective} is no Stable Diffusion pipeline",
            "Export is for denoiser.network unet with objective epsilon or v_prediction.",
        )
    network, text = denoiser.averaged(settings)
    with safe_open(settings.work / "denoiser" / loop.STATE, "pt") as state:
        numbers = json.loads(state.metadata()["numbers"])
    training = {name: numbers[name] for name in ("step", "settings")}
    write(settings, network, text, open_tokenizer(settings), aim.solver(), training)


def open_pipeline(folder: Path) -> Any:
    """Load an exported pipeline as anybody would, quietly."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.unet.to(memory_format=torch.channels_last)  # draws faster by an eighth on a CPU
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def sample(pipe: Any, prompts: Sequence[str], settings: RecipeSettings, stream: str) -> Tensor:
    """Return one picture a prompt, [B, 3, H, W] in [-1, 1]; noise by (seed, stream, place)."""
    edge = pipe.unet.config.sample_size * pipe.vae_scale_factor
    made = []
    for first in range(0, len(prompts), 64):
        part = list(prompts[first : first + 64])
        draws = [generator(settings.seed, stream, first + i) for i in range(len(part))]
        pictures = pipe(
            part,
            num_inference_steps=settings.check.steps,
            guidance_scale=settings.check.guidance,
            height=edge,
            width=edge,
            generator=draws,
            output_type="pt",
        ).images
        made.append(pictures * 2 - 1)
    return torch.cat(made).float()


def write(
    settings: RecipeSettings,
    unet: Any,
    text: Any,
    tokenizer: Any,
    scheduler: Any,
    training: dict[str, Any],
) -> None:
    """Write `out/emoji-128` and `out/emoji-128-clip` as fp16 safetensors."""
    vae = autoencoder.open_trained(settings.work)
    parts = {"vae": vae, "unet": unet, "text_encoder": text}
    with new_folder(settings.out / PIPELINE) as beside:
        for part, module in parts.items():
            known = PARTS[part]
            (beside / part).mkdir()
            state = module.state_dict().items()
            half = {known.file_key(k): t.detach().half().contiguous() for k, t in state}
            save_weights(beside / part, known, half)
            write_json(beside / part / "config.json", plain_config(module))
        save_tokenizer(tokenizer, beside / "tokenizer")
        scheduler.save_pretrained(beside / "scheduler")
        index = {"_class_name": "StableDiffusionPipeline", **NO_CHECKER}
        write_json(
            beside / "model_index.json",
            model_index(parts_of.STABLE_DIFFUSION, type(scheduler).__name__, index),
        )
        write_json(beside / TRAINING, training)
    write_judge(settings.out / JUDGE, clip.open_trained(settings.work), tokenizer)
    print(f"wrote {settings.out / PIPELINE} and {settings.out / JUDGE}", flush=True)


def write_judge(dest: Path, judge: Any, tokenizer: Any) -> None:
    """Write the companion `CLIPModel` with its tokenizer and image processor."""
    with new_folder(dest) as beside:
        judge.half().save_pretrained(beside)
        # safetensors leaves files that their owner alone can read.
        (beside / "model.safetensors").chmod(0o644)
        write_json(beside / "config.json", plain_config(judge))
        save_tokenizer(tokenizer, beside)
        write_json(beside / "preprocessor_config.json", preprocessor())


def plain_config(module: Any) -> dict[str, Any]:
    """Return a part's configuration without where it was loaded from.

    transformers loads a part in the type its configuration names, diffusers in fp32: naming fp32
    makes a pipeline that is loaded without a type work as it is.
    """
    values: dict[str, Any] = json.loads(
        module.to_json_string()
        if hasattr(module, "to_json_string")
        else module.config.to_json_string()
    )
    values.pop("_name_or_path", None)
    if not hasattr(module, "to_json_string"):
        values |= {"dtype": "float32", "architectures": [type(module).__name__]}
    return values


def preprocessor() -> dict[str, Any]:
    """Return the judge's image processor: 128 pixels, values to [-1, 1]."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": EDGE},
        "do_center_crop": True,
        "crop_size": {"height": EDGE, "width": EDGE},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }


def size_mb(folder: Path) -> float:
    """Return the size of a folder's files in MB (10^6 bytes)."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
