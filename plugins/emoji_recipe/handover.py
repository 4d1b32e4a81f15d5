"""Stage `unpack`: a training that goes on from the base that ships.

A work folder's state (weights, average, moments, all in float32) is large and stays where it is.
What ships holds the tokenizer, the finished autoencoder and CLIP, and the denoiser's averaged
weights with their step, in half precision. Unpacked into an empty folder, the denoiser goes on from
that step with the average as its weights, fresh moments and a warm-up: not to the bit, as a state
that is resumed.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from dreambooth.errors import RunError
from dreambooth.files import new_folder, write_with
from emoji_recipe import loop
from emoji_recipe.export import JUDGE, PIPELINE, TRAINING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from emoji_recipe.settings import RecipeSettings

OF_DIFFUSERS, OF_TRANSFORMERS = "diffusion_pytorch_model.safetensors", "model.safetensors"
"""Names of weight files."""


def unpack(settings: RecipeSettings) -> None:
    """Fill a work folder from the shipped base; a denoiser that was begun there is left alone.

    Raises:
        RunError: no base of this recipe is there.
    """
    work, base = settings.work, settings.out / PIPELINE
    if not (base / TRAINING).is_file():
        raise RunError(f"{base} holds no trained base", "Train one: the stages run in order.")
    _copy(base / "vae", work / "autoencoder" / "model")
    _copy(settings.out / JUDGE, work / "clip" / "model", ("config.json", OF_TRANSFORMERS))
    _copy(base / "tokenizer", work / "data" / "tokenizer")
    if not (work / "denoiser" / loop.STATE).is_file():
        parts = {
            "network": base / "unet" / OF_DIFFUSERS,
            "text_encoder": base / "text_encoder" / OF_TRANSFORMERS,
        }
        tensors = {
            f"{prefix}.{name}": value
            for prefix, path in parts.items()
            for name, value in load_file(path).items()
        }
        numbers = json.dumps(json.loads((base / TRAINING).read_text()) | {"cpu_seconds": 0.0})
        write_with(
            work / "denoiser" / loop.BEGUN,
            lambda path: save_file(tensors, path, metadata={"numbers": numbers}),
        )
    print(f"unpacked {base} into {work}", flush=True)


def _copy(source: Path, dest: Path, names: Sequence[str] = ()) -> None:
    """Copy a folder, or the named files of it."""
    with new_folder(dest) as beside:
        for file in [source / name for name in names] or sorted(source.iterdir()):
            shutil.copyfile(file, beside / file.name)
