"""Stages `pack` and `unpack`: a training that goes on elsewhere, in a few megabytes.

A work folder's state (weights, average, moments, all in fp32) is large and stays where it is.
Packed are, in half precision: the tokenizer, the finished autoencoder and CLIP, and the denoiser's
averaged weights with their step. Unpacked into an empty folder, the denoiser goes on from that step
with the average as its weights, fresh moments and a warm-up: not to the bit, as a resumed state.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth.errors import RunError
from dreambooth.files import new_folder, write_bytes, write_with
from emoji_recipe import loop

if TYPE_CHECKING:
    from pathlib import Path

    from emoji_recipe.settings import RecipeSettings

MODELS = {"autoencoder": "diffusion_pytorch_model.safetensors", "clip": "model.safetensors"}
DENOISER = "denoiser.safetensors"


def pack(settings: RecipeSettings) -> None:
    """Write `packed` from what the work folder has finished and from the denoiser's average."""
    work, packed = settings.work, settings.packed
    for stage, weights in MODELS.items():
        if (work / stage / "model").is_dir():
            _copy(work / stage, packed / stage, weights)
    if (work / "data" / "tokenizer").is_dir():
        _copy(work / "data" / "tokenizer", packed / "tokenizer", None)
    state = work / "denoiser" / loop.STATE
    if state.is_file():
        with safe_open(state, "pt") as file:
            metadata = file.metadata()
        average = {
            name.removeprefix("ema."): value.half()
            for name, value in load_file(state).items()
            if name.startswith("ema.")
        }
        write_with(packed / DENOISER, lambda path: save_file(average, path, metadata=metadata))
    print(f"packed {', '.join(sorted(p.name for p in packed.iterdir()))} in {packed}", flush=True)


def unpack(settings: RecipeSettings) -> None:
    """Fill a work folder from `packed`; a denoiser that was begun there is left alone.

    Raises:
        RunError: there is nothing packed.
    """
    work, packed = settings.work, settings.packed
    if not packed.is_dir():
        raise RunError(f"{packed} is not there", "Run the stage `pack` where the training is.")
    for stage, weights in MODELS.items():
        if (packed / stage).is_dir():
            _copy(packed / stage, work / stage, weights)
    _copy(packed / "tokenizer", work / "data" / "tokenizer", None)
    if (packed / DENOISER).is_file() and not (work / "denoiser" / loop.STATE).is_file():
        begun = work / "denoiser" / loop.BEGUN
        begun.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(begun, (packed / DENOISER).read_bytes())


def _copy(source: Path, dest: Path, weights: str | None) -> None:
    """Copy a folder; the weights of its `model` are rounded to half and back to their type.

    What is trained on is then what ships, in either place.
    """
    with new_folder(dest / "model" if weights else dest) as beside:
        shutil.copytree(source / "model" if weights else source, beside, dirs_exist_ok=True)
        if weights:
            half = {name: value.half() for name, value in load_file(beside / weights).items()}
            save_file(half, beside / weights, metadata={"format": "pt"})
    if weights and (source / "figures.json").is_file():
        shutil.copyfile(source / "figures.json", dest / "figures.json")
