"""Run somebody else's training script and write down when its optimizer stepped.

`python peer.py RECORD.json SCRIPT [ARGS...]`: nothing of the script is changed. Where torchvision
is missing, the few transforms such scripts use are stood in for.
"""

from __future__ import annotations

import json
import resource
import runpy
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file


def stand_in() -> None:
    """Offer `torchvision.transforms` where it is not installed.

    The libraries look for torchvision once: they do so before it seems to be there.
    """
    import diffusers  # noqa: F401
    from transformers.utils import is_torchvision_available

    is_torchvision_available()
    try:
        import torchvision  # noqa: F401
    except ImportError:
        transforms = types.ModuleType("torchvision.transforms")
        transforms.Compose = Compose
        transforms.Resize = Resize
        transforms.CenterCrop = transforms.RandomCrop = Crop
        transforms.ToTensor = lambda: to_tensor
        transforms.Normalize = lambda mean, std: lambda x: (x - mean[0]) / std[0]
        transforms.RandomHorizontalFlip = Flip
        transforms.InterpolationMode = Image.Resampling
        functional = types.ModuleType("torchvision.transforms.functional")
        functional.crop = crop
        module = types.ModuleType("torchvision")
        module.__spec__ = ModuleSpec("torchvision", None)
        module.transforms = transforms
        sys.modules |= {
            "torchvision": module,
            "torchvision.transforms": transforms,
            "torchvision.transforms.functional": functional,
        }


class Compose:
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, image):
        for step in self.steps:
            image = step(image)
        return image


class Resize:
    def __init__(self, size, interpolation=Image.Resampling.BILINEAR):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image):
        scale = self.size / min(image.size)
        sides = [round(side * scale) for side in image.size]
        return image.resize(sides, self.interpolation)


class Crop:
    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        left, top = ((side - self.size) // 2 for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


class Flip:
    def __init__(self, p=0.5):
        self.p = p


def crop(image, top, left, height, width):
    return image.crop((left, top, left + width, top + height))


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def kept_first_step() -> dict[str, torch.Tensor]:
    """Return what the first step's network was given and its losses were, as they come."""
    from diffusers import UNet2DConditionModel
    from torch.nn import functional

    kept: dict[str, torch.Tensor] = {}
    forward, mse = UNet2DConditionModel.forward, functional.mse_loss

    def seen(self, sample, timestep, *args, **kwargs):
        if torch.is_grad_enabled() and "z_t" not in kept:
            kept.update(z_t=sample.detach().clone(), t=timestep.detach().clone())
        return forward(self, sample, timestep, *args, **kwargs)

    def compared(pred, target, *args, **kwargs):
        loss, number = mse(pred, target, *args, **kwargs), sum(n[:5] == "loss_" for n in kept)
        if number < 2:
            kept.update({
                f"target_{number}": target.detach().clone(), f"loss_{number}": loss.detach().clone()
            })  # fmt: skip
        return loss

    UNet2DConditionModel.forward, functional.mse_loss = seen, compared
    return kept


def main() -> None:
    record, script, *arguments = sys.argv[1:]
    stand_in()
    marks: dict[str, list[float]] = {"steps": [], "drawn": []}
    step = torch.optim.AdamW.step

    def timed(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        marks["steps"].append(time.monotonic())
        return result

    torch.optim.AdamW.step = timed
    from diffusers import StableDiffusionPipeline

    call = StableDiffusionPipeline.__call__

    def drawn(self, *args, **kwargs):
        began = time.monotonic()
        result = call(self, *args, **kwargs)
        marks["drawn"].append(time.monotonic() - began)
        return result

    StableDiffusionPipeline.__call__ = drawn
    first = kept_first_step()
    began = time.monotonic()
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        values = {**marks, "began": began, "ended": time.monotonic(), "peak_bytes": peak}
        Path(record).write_text(json.dumps(values))
        if first:
            save_file({n: t.contiguous() for n, t in first.items()}, f"{record}.safetensors")


if __name__ == "__main__":
    main()
