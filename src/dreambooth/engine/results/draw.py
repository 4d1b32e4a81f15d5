"""Pictures from a run: its exported model where there is one, else its newest checkpoint."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.results.samples import draw_pictures, write_pictures
from dreambooth.engine.results.weights import open_trained
from dreambooth.engine.watching.failures import explained
from dreambooth.errors import JobError
from dreambooth.helpers.random import derive
from dreambooth.runs.finding import open_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreambooth.engine.reporting import Reporter
    from dreambooth.interfaces import Sampler
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


@dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    count: int
    grid: Path
    source: str
    """Which weights: `final`, or the name of a checkpoint."""
    step: int
    """How many steps they had been trained."""
    files: tuple[Path, ...] = ()
    """The single pictures, prompt after prompt."""


def draw_from_run(path: Path, request: DrawRequest, reporter: Reporter) -> Drawn:
    """Draw `count` pictures a prompt into a new or empty folder; `JobError` if it holds files."""
    folder, job = open_run(path)
    out = request.out or next_folder(folder.samples)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise JobError(f"{out} holds something already", "name a new or an empty folder in --out")
    with ExitStack() as stack:
        stack.enter_context(explained(job, folder))
        devices = stack.enter_context(open_devices(job.train))
        recorded = folder.read_manifest().get("machine", {}).get("precision")
        precision = precision_of(job, devices.device, recorded)
        ctx = EngineContext(job, devices.device, precision, folder.path, reporter, devices)
        model, source = open_trained(ctx, folder)
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
            label="Drawing",
        )
        step = step_of(folder, source)
        facts = {
            "run": job.name,
            "weights": source,
            "step": step,
            "size": list(size),
            "sampler": sampler.key(),
        }
        if request.negative is not None:
            facts["negative"] = request.negative
        sheet = write_pictures(out, pictures, request.count, facts)
    files = tuple(out / f"{number:03d}.png" for number in range(len(pictures)))
    return Drawn(len(pictures), sheet, source, step, files)


def step_of(folder: RunFolder, source: str) -> int:
    """Return the step of a run's weights by where they came from (see `open_trained`)."""
    if source.startswith("step-"):
        return int(source.removeprefix("step-"))
    result = folder.read_manifest().get("result") or {}
    kept = result.get("kept") or {}
    return int(kept["step"] if kept.get("exported") else result.get("steps", 0))


def next_folder(samples: Path) -> Path:
    """Return the next free `drawn-001` below a run's samples."""
    number = 1
    while (folder := samples / f"drawn-{number:03d}").exists():
        number += 1
    return folder
