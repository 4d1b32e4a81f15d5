"""Pictures from a run: its exported model where there is one, else its newest checkpoint."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.results.samples import draw_pictures, write_pictures
from dreambooth.engine.results.weights import open_trained, require_steps, step_in
from dreambooth.engine.watching.failures import explained
from dreambooth.errors import JobError
from dreambooth.helpers.pictures import grid, save_picture
from dreambooth.helpers.random import derive
from dreambooth.runs.checkpoints import name_of
from dreambooth.runs.finding import open_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreambooth.engine.reporting import Reporter
    from dreambooth.engine.results.samples import Picture
    from dreambooth.interfaces import SafetyChecker, Sampler
    from dreambooth.runs.folder import RunFolder


@dataclass(frozen=True)
class DrawRequest:
    """What `dbt sample` was asked for; None takes the job's own value."""

    prompts: Sequence[str]
    count: int = 4
    seed: int = 0
    negative: str | None = None
    size: tuple[int, int] | None = None
    sampler: Sampler | None = None
    out: Path | None = None
    batch_size: int | None = None
    safety: SafetyChecker | None = None
    """What looks at the pictures before they are written; one whose action is `off` looks away."""
    training_steps: Sequence[int] = ()
    """Steps whose checkpoints or exports are drawn from; none takes the run's result."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    count: int
    grid: Path
    source: str
    """Which weights: `final`, a checkpoint's name, or the export of a step."""
    step: int
    """How many steps they had been trained."""
    files: tuple[Path, ...] = ()
    """The single pictures, prompt after prompt."""


def draw_from_run(path: Path, request: DrawRequest, reporter: Reporter) -> Drawn:
    """Draw `count` pictures a prompt into a new or empty folder; `JobError` if it holds files.

    Of several training steps each has a folder inside, and a row of the grid: the same prompts
    and seeds, as the weights were then.
    """
    folder, job = open_run(path)
    out = request.out or next_folder(folder.samples)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise JobError(f"{out} holds something already", "name a new or an empty folder in --out")
    require_steps(folder, job, request.training_steps)
    with ExitStack() as stack:
        stack.enter_context(explained(job, folder))
        devices = stack.enter_context(open_devices(job.train))
        recorded = folder.read_manifest().get("machine", {}).get("precision")
        precision = precision_of(job, devices.device, recorded)
        ctx = EngineContext(job, devices.device, precision, folder.path, reporter, devices)
        if len(request.training_steps) < 2:
            pictures, facts = _draw(ctx, folder, request, *request.training_steps)
            sheet = write_pictures(out, pictures, request.count, facts)
            return Drawn(
                len(pictures), sheet, facts["weights"], facts["step"], _files(out, pictures)
            )
        drawn: list[Picture] = []
        files: tuple[Path, ...] = ()
        for step in request.training_steps:
            pictures, facts = _draw(ctx, folder, request, step)
            write_pictures(out / name_of(step), pictures, request.count, facts)
            drawn += pictures
            files += _files(out / name_of(step), pictures)
    rows = grid([p.image for p in drawn], len(drawn) // len(request.training_steps))
    prompt = " | ".join(dict.fromkeys(p.prompt for p in drawn))
    save_picture(out / "grid.png", rows, {**facts, "prompt": prompt})
    return Drawn(len(drawn), out / "grid.png", facts["weights"], facts["step"], files)


def _files(folder: Path, pictures: Sequence[Picture]) -> tuple[Path, ...]:
    return tuple(folder / f"{number:03d}.png" for number in range(len(pictures)))


def _draw(
    ctx: EngineContext, folder: RunFolder, request: DrawRequest, step: int | None = None
) -> tuple[list[Picture], dict[str, Any]]:
    """Draw what was asked for with a run's weights, and say how it was drawn."""
    job = ctx.job
    model, source = open_trained(ctx, folder, step)
    sampler, size = request.sampler or job.sampler, request.size or job.data.size
    schedule = job.scheduler.open(model.info)
    filled = [job.subject.fill(p) for p in request.prompts]
    prompts = [p for p in filled for _ in range(request.count)]
    seeds = [derive(request.seed, "draw", k) % 2**32 for k in range(request.count)]
    pictures = draw_pictures(
        ctx,
        model,
        sampler,
        prompts,
        seeds * len(filled),
        size=size,
        solver_config=schedule.solver_config(size, sampler.sampling_steps()),
        batch_size=request.batch_size or job.samples.batch_size,
        negative=request.negative,
        safety=request.safety or job.safety,
        label="Drawing" if step is None else f"Drawing, step {step}",
    )
    facts = {
        "run": job.name,
        "weights": source,
        "step": step_of(folder, source),
        "size": list(size),
        "sampler": sampler.key(),
    }
    if request.negative is not None:
        facts["negative"] = request.negative
    return pictures, facts


def step_of(folder: RunFolder, source: str) -> int:
    """Return the step of a run's weights by where they came from (see `open_trained`)."""
    if (step := step_in(source)) is not None:
        return step
    result = folder.read_manifest().get("result") or {}
    kept = result.get("kept") or {}
    return int(kept["step"] if kept.get("exported") else result.get("steps", 0))


def next_folder(samples: Path) -> Path:
    """Return the next free `drawn-001` below a run's samples."""
    number = 1
    while (folder := samples / f"drawn-{number:03d}").exists():
        number += 1
    return folder
