"""What is timed: the embedded base, or Stable Diffusion 1.5's configuration with random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """One size of model and what belongs to it."""

    name: str
    resolution: int
    rows: int
    """Instance rows of a step; as many class rows come on top."""
    steps: int
    """Steps of a run of the peer's script; the first ones are left out of its median."""
    sampling_steps: int
    class_images: int
    draw_batch: int


SIZES = {
    "small": Size("small", 64, 1, 40, 25, 40, 20),
    "sd15": Size("sd15", 256, 1, 8, 4, 2, 2),
    "sdxl": Size("sdxl", 256, 1, 2, 2, 2, 1),
    "tiny-sdxl": Size("small", 64, 1, 40, 5, 8, 8),
}

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}


def builtin() -> Path:
    """Return the folder of the embedded base."""
    from importlib.resources import files

    return Path(str(files("dreambooth_plugins"))) / "base_emoji" / "emoji-64"


def tiny_sdxl() -> Path:
    """Return the folder of `builtin:tiny-sdxl`."""
    from dreambooth_plugins.model.tiny import tiny_folder

    return tiny_folder("tiny-sdxl", build=True)


def sd15(folder: Path) -> Path:
    """Return a pipeline of Stable Diffusion 1.5's configuration, written once (4.3 GB, float32).

    The tokenizer is the embedded base's: its words do not matter for the time of a step.
    """
    dest = folder / "sd15-random"
    if (dest / "model_index.json").is_file():
        return dest
    import torch
    from diffusers import (
        AutoencoderKL,
        DDPMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(builtin() / "tokenizer", model_max_length=77)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(**TEXT, **ids, pad_token_id=tokenizer.pad_token_id, vocab_size=49408)
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**UNET),
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(dest)
    return dest


def sdxl(folder: Path) -> Path:
    """Return SDXL's shipped configuration with random weights, written once (7 GB, bfloat16).

    Uniform weights of variance 1 / fan-in, norms 1, biases 0: activations stay finite.
    """
    dest = folder / "sdxl-random"
    if (dest / "done").is_file():
        return dest
    import shutil

    import torch
    from safetensors.torch import save_file

    from dreambooth_plugins.model import builtin as shipped
    from dreambooth_plugins.model import parts_of
    from dreambooth_plugins.model.folder.clip_vocabulary import clip_vocabulary
    from dreambooth_plugins.model.folder.loading import skeleton
    from dreambooth_plugins.model.folder.source import Source
    from dreambooth_plugins.model.folder.tokenizer import make_tokenizer, save_tokenizer

    config = shipped.config_folder("sdxl")
    shutil.copytree(config, dest, dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for part in parts_of.SDXL:
        dtype = torch.float32 if part.role == "vae" else torch.bfloat16
        state = {}
        for name, like in skeleton(Source(parts_of.SDXL, config), part.name).state_dict().items():
            tensor = torch.empty(like.shape, dtype=dtype)
            if tensor.dim() < 2:
                tensor.fill_(float("norm" in name and name.endswith("weight")))
            else:
                bound = (3.0 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound, generator=generator)
            state[part.file_key(name)] = tensor
        save_file(state, dest / part.name / f"{part.stem}.safetensors", {"format": "pt"})
        del state
        if part.tokenizer:
            tokenizer = make_tokenizer(config / part.tokenizer, *clip_vocabulary())
            save_tokenizer(tokenizer, dest / part.tokenizer)
    (dest / "done").touch()
    return dest


def pictures(folder: Path, count: int, side: int) -> Path:
    """Write `count` pictures of noise and colour, and return their folder."""
    import numpy as np
    from PIL import Image

    dest = folder / f"pictures-{count}-{side}"
    if dest.is_dir():
        return dest
    beside = folder / f"making-{count}-{side}"
    beside.mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        image.save(beside / f"{i:05d}.png")
    beside.rename(dest)
    return dest


def job_values(size: Size, model: Path, work: Path, name: str, /, **sections: object) -> dict:
    """Return a job for a measurement; sections of the same kind are merged into its own."""
    values: dict = {
        "name": name,
        "output": work / "runs",
        "model": {"kind": "stable_diffusion", "source": str(model)},
        "subject": {"identifier": "ohwx", "class_noun": "dog"},
        "data": {
            "kind": "folder",
            "path": pictures(work, 5, size.resolution),
            "resolution": size.resolution,
        },
        "prior": {
            "kind": "generated",
            "count": size.class_images,
            "batch_size": size.draw_batch,
        },
        "sampler": {"kind": "cfg", "guidance_scale": 7.5, "steps": size.sampling_steps},
        "freezing": {"kind": "components", "train": ["unet"]},
        "optimizer": {"kind": "adamw", "lr": 1e-6},
        "train": {"steps": size.steps, "batch_size": size.rows, "precision": "fp32"},
        "samples": {"every": 0},
        "trackers": ["jsonl"],
    }
    for section, options in sections.items():
        old = values.get(section)
        merged = isinstance(options, dict) and isinstance(old, dict)
        if merged and options.get("kind", old.get("kind")) == old.get("kind"):
            options = {**old, **options}
        values[section] = options
    return values


def as_json(values: dict) -> str:
    """Return job values as JSON, which is a job file too."""
    return json.dumps(values, default=str)
