"""The loop all stages share: rates, saved states, resuming to the bit, samples while it goes."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth.errors import RunError
from dreambooth.files import write_with
from dreambooth_plugins.model import parts_of
from emoji_recipe import card
from emoji_recipe.ahead import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor, nn

    from emoji_recipe.settings import RecipeSettings, Training

PARTS = {part.name: part for part in parts_of.STABLE_DIFFUSION}
WARM_UP = 40
STATE = "state.safetensors"
BEGUN = "begun.safetensors"
"""Weights of a base that ships, by their names in files; used where there is no state."""
BUILD = ("network", "objective", "widths", "layers")
"""Settings that such weights must agree with: what they are, not how they were trained."""


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
    rows: Callable[[int, float], dict[str, Tensor]]
    """(step, progress 0..1) -> what the step sees, on the CPU. Every draw of a step is made here
    and is a function of the step; worker processes may make it ahead of time."""
    loss: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    """rows -> named scalars; `loss` is the one that is minimised."""
    options: Training
    ema: EMA | None = None
    sample: Callable[[], Image] | None = None
    ready: Callable[[int], None] | None = None
    """Make sure that the rows of a step can be drawn; called for every step, in order, before
    `rows` is, and always in the main process."""


def named_parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the modules' parameters by qualified name."""
    for prefix, module in modules.items():
        for name, param in module.named_parameters():
            yield f"{prefix}.{name}", param


def rate_factor(step: int, total: int, decay_share: float, begun: int = 0) -> float:
    """Return the learning rate's factor: linear warm-up, constant, linear decay to 1 %.

    `begun` is the step the moments are fresh at: 0, or where a shipped base went on.
    """
    warm = min(1.0, (step - begun + 1) / WARM_UP)
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


def save(stage: Stage, settings: RecipeSettings, numbers: dict[str, Any]) -> None:
    """Write the state: one file of tensors with the numbers inside, so that it is whole or absent.

    `numbers`: the step, and the processor seconds so far.
    """
    kept = json.dumps(numbers | {"settings": fixed_settings(stage, settings)})
    write_with(
        settings.work / stage.name / STATE,
        lambda path: save_file(state_tensors(stage), path, metadata={"numbers": kept}),
    )


def load(stage: Stage, settings: RecipeSettings) -> dict[str, Any]:
    """Restore the saved state if there is one; return its numbers (step 0 if there is none).

    Raises:
        RunError: the state was trained with other settings.
    """
    path, begun = (settings.work / stage.name / name for name in (STATE, BEGUN))
    if not path.is_file() and not begun.is_file():
        return {"step": 0, "cpu_seconds": 0.0, "begun": 0}
    path = path if path.is_file() else begun
    with safe_open(path, "pt") as file:
        numbers: dict[str, Any] = json.loads(file.metadata()["numbers"])
    now, then = fixed_settings(stage, settings), numbers.pop("settings")
    asked = BUILD if path == begun else now.keys() | then.keys()
    changed = sorted(key for key in asked if now.get(key) != then.get(key))
    if changed:
        told = ", ".join(f"{key} {then.get(key)} -> {now.get(key)}" for key in changed)
        raise RunError(
            f"{path} was trained with other settings: {told}",
            "Use another --work folder, or the settings it was begun with.",
        )
    if path == begun:
        begin(stage, load_file(path))
        return numbers | {"begun": numbers["step"]}
    restore(stage, load_file(path))
    return numbers


@torch.no_grad()
def begin(stage: Stage, average: Mapping[str, Tensor]) -> None:
    """Put a shipped base's weights into a stage and its average; the moments begin anew."""
    for name, param in named_parameters(stage.modules):
        prefix, own = name.split(".", 1)
        stored = PARTS[prefix].file_key(own) if prefix in PARTS else own
        param.copy_(average[f"{prefix}.{stored}"])
        if stage.ema:
            stage.ema.shadow[name].copy_(param)


def fixed_settings(stage: Stage, settings: RecipeSettings) -> dict[str, Any]:
    """Return the settings that every number depends on; the length may still be changed."""
    values: dict[str, Any] = stage.options.model_dump(mode="json")
    for length in ("steps", "decay_share"):
        values.pop(length)
    return values | {"seed": settings.seed}


class Interruption:
    """Ctrl-C or SIGTERM ask the loop to save and leave; a second one is taken as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(number, self._before[number])

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def fit(stage: Stage, settings: RecipeSettings, minutes: float | None = None) -> bool:
    """Train the stage from where its folder says it stopped; return whether it is done.

    `minutes` bounds this call, not the stage: it saves, leaves, and goes on the next time. No
    number depends on a clock, so any series of calls ends in the same weights.
    """
    from torch.utils.tensorboard import SummaryWriter

    total = stage.options.steps
    numbers = load(stage, settings)
    if numbers["step"] >= total:
        return True
    folder = settings.work / stage.name
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=numbers["step"])
    pace = Pace(stage.name, numbers, total)
    replayed = replay(stage) if settings.device == "cuda" else None
    drawn = drawn_rows(stage, settings, numbers["step"])
    with Interruption() as interruption:
        while numbers["step"] < total and not interruption.asked and not pace.over(minutes):
            scalars = train_step(
                stage, numbers["step"], total, numbers.get("begun", 0), next(drawn), replayed
            )
            numbers["step"] += 1
            if line := pace.due():
                for name, value in scalars.items():
                    writer.add_scalar(f"{stage.name}/{name}", value.item(), numbers["step"])
                told = "  ".join(f"{name} {value.item():.4f}" for name, value in scalars.items())
                print(f"{line}  {told}", flush=True)
            if pace.save_due(settings.save_every):
                check_finite(stage, scalars, numbers["step"])
                save(stage, settings, numbers)
            if stage.sample and numbers["step"] % settings.sample_every == 0:
                show(stage, folder, writer, numbers["step"])
    drawn.close()
    pace.count()
    if numbers["step"] != pace.first:
        check_finite(stage, scalars, numbers["step"])
    save(stage, settings, numbers)
    if stage.sample and numbers["step"] == total:
        show(stage, folder, writer, total)
    writer.close()
    done: bool = numbers["step"] >= total
    if not done:
        print(f"{stage.name}: saved at step {numbers['step']} of {total}", flush=True)
    return done


def drawn_rows(
    stage: Stage, settings: RecipeSettings, first: int
) -> Generator[dict[str, Tensor], None, None]:
    """Yield the rows of the steps from `first` on, drawn ahead where there are workers."""
    total = stage.options.steps

    def steps() -> Iterator[int]:
        for step in range(first, total):
            if stage.ready:
                stage.ready(step)
            yield step

    yield from ahead(
        lambda step: stage.rows(step, step / total),
        steps(),
        settings.workers,
        pinned=settings.device == "cuda",
    )


def check_finite(stage: Stage, scalars: Mapping[str, Tensor], step: int) -> None:
    """Refuse to save weights that a loss or gradient without a number has spoilt.

    Raises:
        RunError: one of the last step's scalars is infinite or no number.
    """
    wrong = [name for name, value in scalars.items() if not value.isfinite()]
    if wrong:
        raise RunError(
            f"{stage.name}: {', '.join(wrong)} is no finite number at step {step}",
            "The last saved state is whole; lower the rates, or train in fp32.",
        )


class Pace:
    """What the clock is for: lines, saving now and then, the time left. It changes no number."""

    EVERY = 20.0

    def __init__(self, name: str, numbers: dict[str, Any], total: int) -> None:
        self.name, self.numbers, self.total = name, numbers, total
        self.begun = self.shown = self.saved = time.monotonic()
        self.first = self.shown_step = numbers["step"]
        self.cpu = time.process_time()

    def over(self, minutes: float | None) -> bool:
        """Return whether this call's minutes are used up."""
        return minutes is not None and time.monotonic() - self.begun > 60 * minutes

    def count(self) -> None:
        """Add the processor seconds since the last count."""
        now = time.process_time()
        self.numbers["cpu_seconds"] += now - self.cpu
        self.cpu = now

    def due(self) -> str | None:
        """Return the next line's beginning (step, rate, time left) if it is time for one."""
        now, step = time.monotonic(), self.numbers["step"]
        if now - self.shown < self.EVERY and step != self.total:
            return None
        rate = (step - self.shown_step) / max(1e-9, now - self.shown)
        left = (self.total - step) / max(1e-9, rate) / 60
        self.shown, self.shown_step = now, step
        return f"{self.name} {step}/{self.total}  {rate:.2f} steps/s  {left:.0f} min left"

    def save_due(self, seconds: float) -> bool:
        """Return whether the state should be saved now."""
        if time.monotonic() - self.saved < seconds:
            return False
        self.count()
        self.saved = time.monotonic()
        return True


def train_step(
    stage: Stage,
    step: int,
    total: int,
    begun: int = 0,
    rows: Mapping[str, Tensor] | None = None,
    update: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Take one step: rates, forward, backward, clipping, update, average.

    `rows`: the step's, where they were drawn ahead. `update`: a card's way through the step.
    """
    set_rates(stage, rate_factor(step, total, stage.options.decay_share, begun))
    rows = stage.rows(step, step / total) if rows is None else rows
    scalars = (update or partial(update_weights, stage))(rows)
    if update is None:
        forget_gradients(stage)
    if stage.ema:
        stage.ema.update(step)
    return scalars


def set_rates(stage: Stage, factor: float) -> None:
    """Set every group's rate to its share of the base rate; in place where the card reads it."""
    for optimizer in stage.optimizers:
        for group in optimizer.param_groups:
            rate = group["base_lr"] * factor
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def update_weights(stage: Stage, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Forward, backward, clipping and the optimisers' steps, without a wait for a card."""
    scalars = stage.loss(rows)
    scalars["loss"].backward()
    norm = torch.nn.utils.clip_grad_norm_([p for _, p in named_parameters(stage.modules)], 1.0)
    for optimizer in stage.optimizers:
        optimizer.step()
    return {name: value.detach() for name, value in scalars.items()} | {"grad_norm": norm}


def forget_gradients(stage: Stage) -> None:
    """Drop the gradients."""
    for optimizer in stage.optimizers:
        optimizer.zero_grad()


def replay(stage: Stage) -> card.Replayed:
    """Return the stage's steps as a card takes them."""
    return card.Replayed(partial(update_weights, stage), partial(forget_gradients, stage))


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
