"""Drawing pictures from a model: previews while training, and `dbt sample`."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.files import write_json
from dreambooth.helpers.pictures import decode, grid, save_picture, to_images, to_pixels
from dreambooth.helpers.random import derive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from dreambooth.engine.session import Session
    from dreambooth.interfaces import Context, LoadedModel, Progress, Sampler

INSTANCES_FOR_METRICS = 8


@dataclass(frozen=True)
class Picture:
    """One drawn picture and how to draw it again."""

    image: Image
    prompt: str
    seed: int


@contextmanager
def evaluating(model: LoadedModel) -> Iterator[None]:
    """Put loaded parts into evaluation mode for the block, then each module back as it was."""
    parts = [model.parts[part] for part in model.loaded()]
    modes = {module: module.training for part in parts for module in part.modules()}
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def draw_pictures(
    ctx: Context,
    model: LoadedModel,
    sampler: Sampler,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    size: tuple[int, int],
    solver_config: Mapping[str, Any],
    batch_size: int,
    negative: str | None = None,
    label: str = "Drawing samples",
    look: Callable[[], None] = lambda: None,
) -> list[Picture]:
    """Draw one picture a prompt and seed, in batches, with progress.

    `look` is called after each sampling step and each batch; what it raises ends the drawing.
    """
    steps = sampler.sampling_steps()
    starts = range(0, len(prompts), batch_size)
    pictures: list[Picture] = []
    with (
        torch.no_grad(),
        evaluating(model),
        ctx.progress(label, steps * len(starts)) as progress,
    ):
        for first in starts:
            some = slice(first, first + batch_size)
            latents = sampler.sample(
                model,
                prompts[some],
                seeds=seeds[some],
                size=size,
                solver_config=solver_config,
                ctx=ctx,
                negative=negative,
                progress=_Looking(progress, look),
            )
            look()
            images = to_images(decode(model, latents))
            made = zip(images, prompts[some], seeds[some], strict=True)
            pictures += [Picture(*each) for each in made]
    return pictures


class _Looking:
    def __init__(self, progress: Progress, look: Callable[[], None]) -> None:
        self._progress, self._look = progress, look

    def advance(self, count: int = 1) -> None:
        """Pass progress on, then look up."""
        self._progress.advance(count)
        self._look()


def write_pictures(
    folder: Path, pictures: Sequence[Picture], columns: int, settings: Mapping[str, Any]
) -> Path:
    """Write single PNGs, `prompts.json` and `grid.png` (returned) into `folder`."""
    record = []
    for i, picture in enumerate(pictures):
        name = f"{i:03d}.png"
        facts = {"prompt": picture.prompt, "seed": picture.seed, **settings}
        save_picture(folder / name, picture.image, facts)
        record.append({"file": name, **facts})
    write_json(folder / "prompts.json", record)
    sheet = grid([p.image for p in pictures], columns)
    facts = {"prompt": " | ".join(dict.fromkeys(p.prompt for p in pictures)), **settings}
    save_picture(folder / "grid.png", sheet, facts)
    return folder / "grid.png"


def sample_seed(seed: int, prompt: int, number: int) -> int:
    """Return the fixed seed of preview `number` of prompt `prompt`; a 32-bit number reads well."""
    return derive(seed, "sample", prompt, number) % 2**32


def draw_samples(s: Session, look: Callable[[], None]) -> list[Picture]:
    """Draw the job's prompts from fixed seeds, with the weights that are exported."""
    job = s.job
    prompts = [job.subject.fill(p) for p in job.samples.prompts]
    numbered = [(i, k) for i in range(len(prompts)) for k in range(job.samples.per_prompt)]
    with s.during("drawing"), s.state.showing_result():
        return draw_pictures(
            s.ctx,
            s.model,
            job.sampler,
            [prompts[i] for i, _ in numbered],
            [sample_seed(job.train.seed, i, k) for i, k in numbered],
            size=job.data.size,
            solver_config=s.schedule.solver_config(job.data.size, job.sampler.sampling_steps()),
            batch_size=job.samples.batch_size,
            look=look,
        )


def measured(s: Session, pictures: Sequence[Picture], look: Callable[[], None]) -> dict[str, float]:
    """Return what the job's metrics say of samples, beside the first instance images."""
    if not s.job.metrics:
        return {}
    by_prompt: dict[str, list[Image]] = {}
    for picture in pictures:
        by_prompt.setdefault(picture.prompt, []).append(picture.image)
    rng = s.ctx.numpy_random("unused")
    items = s.scan.items[:INSTANCES_FOR_METRICS]
    instances = to_images(to_pixels([s.job.data.load(i, 0, rng) for i in items]))
    values: dict[str, float] = {}
    for metric in s.job.metrics:
        look()
        scores = metric.score(by_prompt, instances, s.ctx)
        values |= {f"metric/{name}": float(value) for name, value in scores.items()}
    return values
