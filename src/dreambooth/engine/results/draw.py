"""Pictures from a run: its exported model where there is one, else its newest checkpoint."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.checkpoints import files
from dreambooth.engine.checkpoints.best import WEIGHTS, Best, path_of
from dreambooth.engine.checkpoints.optimizer import check_shapes
from dreambooth.engine.checkpoints.restoring import taking_back
from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.results.samples import draw_pictures, write_pictures
from dreambooth.engine.session import trainable
from dreambooth.engine.watching.failures import explained
from dreambooth.errors import JobError, RunError
from dreambooth.helpers.random import derive
from dreambooth.runs.checkpoints import Damaged, list_checkpoints
from dreambooth.runs.finding import open_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch.nn import Parameter

    from dreambooth.engine.checkpoints.files import Checkpoint
    from dreambooth.engine.reporting import Reporter
    from dreambooth.interfaces import LoadedModel, Sampler
    from dreambooth.job import Job
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


def open_trained(ctx: EngineContext, folder: RunFolder) -> tuple[LoadedModel, str]:
    """Open the model a run made, and say where it came from.

    `final/` where the run ended in whole weights and no checkpoint is newer, else a checkpoint's
    weights (its average, where the run keeps one) on top of the base: the best one's, where the
    job exports that, or the newest one's.
    """
    job = ctx.job
    ended = (folder.read_manifest().get("result") or {}).get("steps", -1)
    steps = [step for step, _ in list_checkpoints(folder.checkpoints)]
    whole = folder.result_is_whole() and (folder.final / "model_index.json").is_file()
    if whole and ended >= max(steps, default=0):
        return job.model.at(folder.final).open(ctx), "final"
    model, _, source = open_weights(ctx, folder)
    return model, source


def open_weights(
    ctx: EngineContext, folder: RunFolder
) -> tuple[LoadedModel, dict[str, Parameter], str]:
    """Open the base with what a run trained on top; return also that, and where it came from.

    From the newest checkpoint (its average, where the run keeps one), or without any from
    `final/`, where the policy can read that back. `RunError` where there is neither.
    """
    job = ctx.job
    found = files.newest(folder.checkpoints, ctx.warn)
    policy = job.freezing
    if found is None:
        readable = policy.at(folder.final) if folder.result_is_whole() else None
        if readable is None:
            raise RunError(
                f"{folder.path} has neither a result nor a checkpoint yet",
                "run the job first, at least up to its first checkpoint",
            )
        policy = readable
    else:
        found = best_of(found, job, ctx)
    model = job.model.open(ctx)
    policy.prepare(model, ctx)
    parameters = trainable(model, policy)
    if found is None:
        return model, parameters, "final"
    with torch.no_grad(), taking_back(found):
        weights = found.tensors.get("ema") or found.tensors["trainable"]
        check_shapes(parameters, weights)
        for name, parameter in parameters.items():
            parameter.data = weights[name].to(ctx.device)
    return model, parameters, found.folder.name


def best_of(newest: Checkpoint, job: Job, ctx: EngineContext) -> Checkpoint:
    """Return the best checkpoint as of the newest one, where the job exports that."""
    best = Best(job.checkpoints.keep_best)
    with taking_back(newest):
        best.load(newest.numbers.get("best"), newest.folder.parent, ctx.warn)
    if best.rule is None or not best.rule.export or best.step is None:
        return newest
    try:
        return files.load(path_of(newest.folder.parent, best.step), WEIGHTS)
    except Damaged as error:
        ctx.warn(f"checkpoint {best.step}, the best, is damaged ({error}); using the newest")
        return newest


@dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    count: int
    grid: Path
    source: str
    """Which weights: `final`, or the name of a checkpoint."""
    step: int
    """How many steps they had been trained."""


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
    return Drawn(len(pictures), sheet, source, step)


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
