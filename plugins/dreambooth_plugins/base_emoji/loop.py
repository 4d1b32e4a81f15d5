"""The loop all stages share: rates, saved states, resuming to the bit, samples while it goes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from dreambooth.files import write_json, write_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor, nn

    from dreambooth_plugins.base_emoji.settings import RecipeSettings

WARM_UP = 40
PROBE = 25
"""Steps after which the length of the run is fixed from the rate so far."""
REPLAN_EVERY = 180.0
"""Seconds between two plans, where planning anew is asked for."""


class EMA:
    """Exponential moving average of the modules' parameters: bias-corrected by a warm-up."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.source = dict(named_parameters(modules))
        self.shadow = {name: p.detach().clone() for name, p in self.source.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters; early steps move further."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        names = list(self.shadow)
        torch._foreach_lerp_(
            [self.shadow[n] for n in names], [self.source[n].detach() for n in names], weight
        )

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and parameters; the second call undoes the first."""
        for name, param in self.source.items():
            kept = param.detach().clone()
            param.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)


@dataclass
class Stage:
    """What the loop needs to know about a stage."""

    name: str
    modules: dict[str, nn.Module]
    optimizers: list[torch.optim.Optimizer]
    loss: Callable[[int, float], dict[str, Tensor]]
    """(step, progress 0..1) -> named scalars; `loss` is the one that is minimised. Every draw in
    it is a function of the step."""
    minutes: float
    decay_share: float = 1.0
    ema: EMA | None = None
    sample: Callable[[], Image] | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


def named_parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the modules' parameters by qualified name."""
    for prefix, module in modules.items():
        for name, param in module.named_parameters():
            yield f"{prefix}.{name}", param


def rate_factor(step: int, total: int | None, decay_share: float) -> float:
    """Return the learning rate's factor: linear warm-up, constant, linear decay to 1 %."""
    warm = min(1.0, (step + 1) / WARM_UP)
    if total is None:
        return warm
    left = (total - step) / max(1.0, decay_share * total)
    return warm * max(0.01, min(1.0, left))


def state_tensors(stage: Stage) -> dict[str, Tensor]:
    """Return everything that changes in training, by name."""
    tensors = {f"model.{n}": p.detach() for n, p in named_parameters(stage.modules)}
    for number, optimizer in enumerate(stage.optimizers):
        for index, entry in optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                tensors[f"optimizer.{number}.{index}.{key}"] = value
    if stage.ema:
        tensors |= {f"ema.{n}": value for n, value in stage.ema.shadow.items()}
    return {name: value.contiguous() for name, value in tensors.items()}


@torch.no_grad()
def restore(stage: Stage, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of `state_tensors` back."""
    for name, param in named_parameters(stage.modules):
        param.copy_(tensors[f"model.{name}"])
    for number, optimizer in enumerate(stage.optimizers):
        state = optimizer.state_dict()
        state["state"] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                _, _, index, key = name.split(".")
                state["state"].setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(state)
    if stage.ema:
        for name, value in stage.ema.shadow.items():
            value.copy_(tensors[f"ema.{name}"])


def save(stage: Stage, folder: Path, step: int, total: int | None) -> None:
    """Write the state: one file of tensors with the step inside, so that it is whole or absent."""
    numbers = json.dumps({"step": step, "total": total} | stage.numbers)
    write_with(
        folder / "state.safetensors",
        lambda path: save_file(state_tensors(stage), path, metadata={"numbers": numbers}),
    )


def load(stage: Stage, folder: Path) -> tuple[int, int | None]:
    """Restore the saved state if there is one; return (step, total)."""
    path = folder / "state.safetensors"
    if not path.is_file():
        return 0, None
    restore(stage, load_file(path))
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
    return numbers["step"], numbers["total"]


def fit(stage: Stage, settings: RecipeSettings, replan: bool = False) -> None:
    """Train the stage to its end, from where its folder says it stopped.

    The number of steps is fixed from the rate of the first steps and kept in the state. `replan`
    fixes it anew every few minutes, so that the stage ends `stage.minutes` from now on a machine
    that others use too: such a run resumes exactly, but two of them differ in their plan.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = settings.work / stage.name
    step, total = load(stage, folder)
    if total is not None and step >= total and not replan:
        return
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
    total = None if replan else total
    begun = time.monotonic()
    saved = sampled = shown = planned = begun
    shown_step = planned_step = step
    while total is None or step < total:
        scalars = train_step(stage, step, total)
        step += 1
        now = time.monotonic()
        late = replan and now - planned > REPLAN_EVERY
        if late or (total is None and step - planned_step >= PROBE):
            rate = (step - planned_step) / (now - planned)
            total = step + max(1, int((stage.minutes * 60 - (now - begun)) * rate))
            planned, planned_step = now, step
            save(stage, folder, step, total)
        if now - shown > 10 or step == total:
            values = {name: value.item() for name, value in scalars.items()}
            for name, value in values.items():
                writer.add_scalar(f"{stage.name}/{name}", value, step)
            speed = (step - shown_step) / (now - shown)
            text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            print(f"{stage.name} {step}/{total or '?'}  {text}  {speed:.2f} steps/s", flush=True)
            shown, shown_step = now, step
        if now - saved > settings.save_every or step == total:
            save(stage, folder, step, total)
            saved = time.monotonic()
        if stage.sample and (now - sampled > settings.sample_every or step == total):
            show(stage, folder, writer, step)
            sampled = time.monotonic()
    writer.close()
    write_json(folder / "done.json", {"steps": total})


def train_step(stage: Stage, step: int, total: int | None) -> dict[str, Tensor]:
    """Take one step: rates, forward, backward, clipping, update, average."""
    factor = rate_factor(step, total, stage.decay_share)
    for optimizer in stage.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
    scalars = stage.loss(step, step / total if total else 0.0)
    scalars["loss"].backward()
    params = [p for _, p in named_parameters(stage.modules)]
    norm = torch.nn.utils.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    for optimizer in stage.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if stage.ema:
        stage.ema.update(step)
    return {name: value.detach() for name, value in scalars.items()} | {"grad_norm": norm}


def show(stage: Stage, folder: Path, writer: Any, step: int) -> None:
    """Write a sheet of samples, drawn with the averaged weights, to a file and TensorBoard."""
    import numpy as np

    if stage.sample is None:
        return
    if stage.ema:
        stage.ema.swap()
    sheet = stage.sample()
    if stage.ema:
        stage.ema.swap()
    write_with(folder / "samples" / f"step-{step:06d}.png", sheet.save)
    writer.add_image(f"{stage.name}/samples", np.asarray(sheet), step, dataformats="HWC")


def pick_precision(settings: RecipeSettings) -> torch.dtype:
    """Return the autocast type: what is asked for, or the faster one of two timed convolutions.

    Without the hardware for it bf16 is many times slower on a CPU, so the probe is a small one.
    """
    if settings.precision != "auto":
        return torch.float32 if settings.precision == "fp32" else torch.bfloat16
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.zeros(64, 64, 3, 3, requires_grad=True)
        pixels = torch.zeros(8, 64, 16, 16, requires_grad=True)
        times = []
        for _ in range(3):
            begun = time.monotonic()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                torch.nn.functional.conv2d(pixels, weight, padding=1).float().sum().backward()
            times.append(time.monotonic() - begun)
        seconds[dtype] = min(times)
    return min(seconds, key=lambda dtype: seconds[dtype])
