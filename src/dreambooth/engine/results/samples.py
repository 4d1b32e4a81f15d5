"""Drawing pictures from a model: previews while training, and `dbt sample`."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.engine.results.safety import active, highest, judge
from dreambooth.files import MAX_JSON, read_limited, write_json
from dreambooth.helpers.pictures import decode, grid, save_picture, to_images, to_pixels
from dreambooth.helpers.random import derive
from dreambooth.interfaces import Drawing, Evidence
from dreambooth.jobs.samplers import drawn_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from dreambooth.component.previews import SamplePrompt
    from dreambooth.engine.results.safety import Verdict
    from dreambooth.engine.session import Session
    from dreambooth.interfaces import (
        Context,
        LoadedModel,
        NoiseSchedule,
        Progress,
        SafetyChecker,
        Sampler,
        Scan,
    )
    from dreambooth.job import Job

INSTANCES_FOR_METRICS = 8


@dataclass(frozen=True)
class Picture:
    """One drawn picture and how to draw it again."""

    image: Image
    prompt: str
    seed: int
    verdict: Verdict | None = None
    """What a safety checker said of it."""


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
    safety: SafetyChecker | None = None,
    label: str = "Drawing samples",
    look: Callable[[], None] = lambda: None,
) -> list[Picture]:
    """Draw one picture a prompt and seed, in batches, with progress, as `safety` lets it be shown.

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
    checker = active(safety, ctx.job)
    if checker is None:
        return pictures
    look()
    shown = judge(ctx, checker, [picture.image for picture in pictures])
    return [
        replace(picture, image=image, verdict=verdict)
        for picture, (image, verdict) in zip(pictures, shown, strict=True)
    ]


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
        if picture.verdict is not None:
            facts["safety"] = picture.verdict.as_dict()
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


def seed_of(job: Job, entry: SamplePrompt, prompt: int, number: int) -> int:
    """Return the seed of a picture: counted on from the prompt's own, where it has one."""
    if entry.seed is None:
        return sample_seed(job.train.seed, prompt, number)
    return (entry.seed + number) % 2**32


def draw_entries(
    ctx: Context,
    model: LoadedModel,
    schedule: NoiseSchedule,
    entries: Sequence[SamplePrompt],
    per_prompt: int,
    *,
    label: str = "Drawing samples",
    look: Callable[[], None] = lambda: None,
) -> list[Picture]:
    """Draw prompts with the settings of their own, pictures of one prompt side by side."""
    job = ctx.job
    drawn: dict[int, list[Picture]] = {}
    for some in drawn_together(job, entries):
        pictures = draw_pictures(
            ctx,
            model,
            some.sampler,
            [job.subject.fill(entries[i].prompt) for i in some.numbers for _ in range(per_prompt)],
            [seed_of(job, entries[i], i, k) for i in some.numbers for k in range(per_prompt)],
            size=some.size,
            solver_config=schedule.solver_config(some.size, some.sampler.sampling_steps()),
            batch_size=job.samples.batch_size,
            negative=some.negative,
            safety=job.safety,
            label=label,
            look=look,
        )
        for at, i in enumerate(some.numbers):
            drawn[i] = pictures[at * per_prompt : (at + 1) * per_prompt]
    return [picture for i in range(len(entries)) for picture in drawn[i]]


def draw_samples(s: Session, look: Callable[[], None]) -> list[Picture]:
    """Draw the job's prompts from fixed seeds, with the weights that are exported."""
    samples = s.job.samples
    with s.during("drawing"), s.state.showing_result():
        return draw_entries(
            s.ctx, s.model, s.schedule, samples.entries, samples.per_prompt, look=look
        )


def photographs(ctx: Context, scan: Scan, most: int = INSTANCES_FOR_METRICS) -> list[Image]:
    """Return the first instance images as they are trained, without augmentation."""
    rng = ctx.numpy_random("unused")
    return to_images(to_pixels([ctx.job.data.load(i, 0, rng) for i in scan.items[:most]]))


def evidence(
    ctx: Context, scan: Scan, pictures: Sequence[Picture], untrained: Sequence[Picture]
) -> Evidence:
    """Return drawn pictures beside the first instance images and the untrained base's pictures."""
    rng = ctx.numpy_random("unused")
    samples = [ctx.job.data.load(item, 0, rng) for item in scan.items[:INSTANCES_FOR_METRICS]]
    masks = [None if s.mask is None else mask_image(s.mask) for s in samples]
    return Evidence(
        [Drawing(p.image, p.prompt, p.seed) for p in pictures],
        to_images(to_pixels(samples)),
        ctx.job.subject,
        [Drawing(p.image, p.prompt, p.seed) for p in untrained],
        masks,
    )


def measured(
    s: Session,
    pictures: Sequence[Picture],
    untrained: Sequence[Picture],
    look: Callable[[], None],
) -> dict[str, float]:
    """Return what metrics say of samples, beside the first instance images, and the highest score
    of the safety checker."""
    values = highest([picture.verdict for picture in pictures])
    if not s.job.metrics:
        return values
    shown = evidence(s.ctx, s.scan, pictures, untrained)
    for metric in s.job.metrics:
        look()
        scores = metric.measure(shown, s.ctx)
        values |= {f"metric/{score.logged}": float(score.value) for score in scores}
    return values


def mask_image(mask: Any) -> Image:
    """Return a mask [height, width] in 0..1 as a grey picture."""
    from PIL import Image as Pillow

    return Pillow.fromarray((mask * 255).round().astype("uint8"), mode="L")


def read_record(folder: Path) -> list[dict[str, Any]]:
    """Return what `prompts.json` of a folder lists; nothing where it is damaged."""
    try:
        record = json.loads(read_limited(folder / "prompts.json", MAX_JSON))
    except (OSError, ValueError, RecursionError):
        return []
    return (
        [entry for entry in record if isinstance(entry, dict)] if isinstance(record, list) else []
    )


def read_pictures(folder: Path) -> list[Picture]:
    """Return the pictures of a folder that `write_pictures` wrote, those that can be read."""
    from PIL import Image as Pillow

    found: list[Picture] = []
    for entry in read_record(folder):
        try:
            path = folder / str(entry["file"])
            if path.parent == folder and path.is_file() and not path.is_symlink():
                with Pillow.open(path) as image:
                    picture = image.convert("RGB")
                found.append(Picture(picture, str(entry["prompt"]), int(entry["seed"])))
        except (OSError, ValueError, TypeError, KeyError, Pillow.DecompressionBombError):
            continue  # a damaged picture: the others can be shown
    return found
