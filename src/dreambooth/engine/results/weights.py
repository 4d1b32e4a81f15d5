"""What a run trained, opened again: from its newest or best checkpoint, or from its result."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.engine.checkpoints import files
from dreambooth.engine.checkpoints.best import WEIGHTS, Best
from dreambooth.engine.checkpoints.optimizer import check_shapes
from dreambooth.engine.checkpoints.restoring import taking_back
from dreambooth.engine.session import trainable
from dreambooth.errors import JobError, RunError
from dreambooth.plugins import registry
from dreambooth.runs.checkpoints import Damaged, list_checkpoints, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.nn import Parameter

    from dreambooth.engine.checkpoints.files import Checkpoint
    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import FreezingPolicy, LoadedModel, Model
    from dreambooth.job import Job
    from dreambooth.runs.folder import RunFolder


@dataclass(frozen=True)
class Opened:
    """A model with a run's weights."""

    model: LoadedModel
    parameters: dict[str, Parameter]
    """What the run trained, by qualified name."""
    source: str
    """Where that came from: `final`, or the name of a checkpoint."""


@dataclass(frozen=True)
class Written:
    """How what a run has exported is read back: the policy that begins with it, on this model."""

    policy: FreezingPolicy | None
    """None: the files are a whole model, with what was trained in it."""
    model: Model
    source: str
    """The folder, relative to the run's."""


def open_trained(
    ctx: EngineContext, folder: RunFolder, step: int | None = None
) -> tuple[LoadedModel, str]:
    """Open the model a run made, and say where it came from.

    As it was at `step`, where one is given (see `open_weights`), else as the run ended: `final/`
    where it ended in whole weights and no checkpoint is newer, else a checkpoint's weights (its
    average, where the run keeps one) on top of the base: the best one's, where the job exports
    that, or the newest one's.
    """
    job = ctx.job
    ended = (folder.read_manifest().get("result") or {}).get("steps", -1)
    newest = max(checkpoints_of(folder), default=0)
    if step is None and has_whole_model(folder) and ended >= newest:
        return job.model.at(folder.final).open(ctx), "final"
    if step is not None and step not in checkpoints_of(folder):
        require_steps(folder, job, [step])
        written = exports_of(folder, job)[step]
        if written.policy is None:
            return written.model.open(ctx), written.source
    opened = open_weights(ctx, folder, step)
    return opened.model, opened.source


def open_weights(ctx: EngineContext, folder: RunFolder, step: int | None = None) -> Opened:
    """Open the base with what a run trained, whether it is finished or was interrupted.

    As it was at `step`, where one is given: from that checkpoint, or from what was exported at
    that step; `JobError` where it is in neither. Else the newest checkpoint (the best one, where
    the job exports that) is on top of the base, or, where there is none any more, what lies in
    `final/`: where the policy can read that back, or where it holds the whole model. `RunError`
    where there is neither.
    """
    job = ctx.job
    found: Checkpoint | None = None
    written = Written(job.freezing, job.model, "")
    if step:
        require_steps(folder, job, [step])
        if step in checkpoints_of(folder):
            found = checkpoint_of(folder, step)
        else:
            written = exports_of(folder, job)[step]
    elif newest := files.newest(folder.checkpoints, ctx.warn):
        found = best_of(newest, job, ctx)
    else:
        written = result_of(folder, job)
    if written.policy is None:
        raise JobError(
            f"{folder.path / written.source} is a whole model: it can be drawn from alone",
            f"checkpoints.keep_every keeps steps that can be exported; kept are "
            f"{', '.join(map(str, checkpoints_of(folder))) or 'none'}",
        )
    model = written.model.open(ctx)
    written.policy.prepare(model, ctx)
    parameters = trainable(model, written.policy)
    if found is None:
        return Opened(model, parameters, written.source)
    put_weights(ctx, parameters, found)
    return Opened(model, parameters, found.folder.name)


def result_of(folder: RunFolder, job: Job) -> Written:
    """Return how the files in `final/` are opened; `RunError` where they cannot be."""
    if folder.result_is_whole() and (readable := job.freezing.at(folder.final)) is not None:
        return Written(readable, job.model, "final")
    if has_whole_model(folder) and begins_with_whole(job.freezing):
        return Written(job.freezing, job.model.at(folder.final), "final")
    raise RunError(
        f"{folder.path} has neither a result nor a checkpoint yet",
        "run the job first, at least up to its first checkpoint",
    )


def begins_with_whole(policy: FreezingPolicy) -> bool:
    """Say whether a policy goes on with a whole model: not where that knows its word already."""
    return policy.artifacts == {"weights"} and not policy.learns_word()


def exports_of(folder: RunFolder, job: Job) -> dict[int, Written]:
    """Return step -> how what was exported at it is opened, for files that can be read back."""
    kinds: Mapping[str, Any] = registry().kinds("exporter")
    found: dict[int, Written] = {}
    for step, kind, path in folder.step_exports():
        cls = kinds.get(kind)
        if cls is None or step in found or not cls.accepts & job.freezing.artifacts:
            continue
        source = path.relative_to(folder.path).as_posix()
        if not cls.reads_whole_model:
            if (readable := job.freezing.at(path)) is not None:
                found[step] = Written(readable, job.model, source)
        elif (path / "model_index.json").is_file():
            policy = job.freezing if begins_with_whole(job.freezing) else None
            found[step] = Written(policy, job.model.at(path), source)
    return found


def open_step(ctx: EngineContext, folder: RunFolder, step: int) -> Opened:
    """Open the base with what a run had trained by one of its checkpoints, or by its end.

    `RunError` where that checkpoint is damaged.
    """
    where = folder.checkpoints / name_of(step)
    if not where.is_dir():
        model, source = open_trained(ctx, folder)
        return Opened(model, {}, source)
    try:
        found = files.load(where, WEIGHTS)
    except Damaged as error:
        raise RunError(
            f"the checkpoint of step {step} is damaged: {error}", "name another step"
        ) from error
    model = ctx.job.model.open(ctx)
    ctx.job.freezing.prepare(model, ctx)
    parameters = trainable(model, ctx.job.freezing)
    put_weights(ctx, parameters, found)
    return Opened(model, parameters, found.folder.name)


def put_weights(ctx: EngineContext, parameters: dict[str, Parameter], found: Checkpoint) -> None:
    """Put a checkpoint's weights (its average, where it has one) into the parameters."""
    with torch.no_grad(), taking_back(found):
        weights = found.tensors.get("ema") or found.tensors["trainable"]
        check_shapes(parameters, weights)
        for name, parameter in parameters.items():
            parameter.data = weights[name].to(ctx.device)


def checkpoint_of(folder: RunFolder, step: int) -> Checkpoint:
    """Return the weights of a step's checkpoint; `JobError` where it is damaged."""
    try:
        return files.load(folder.checkpoints / name_of(step), WEIGHTS)
    except Damaged as error:
        raise JobError(
            f"the checkpoint of step {step} is damaged ({error})", "take another step"
        ) from error


def require_steps(folder: RunFolder, job: Job, steps: Sequence[int]) -> None:
    """Raise `JobError` where a run has neither a checkpoint nor an export of one of the steps."""
    kept = checkpoints_of(folder)
    if all(step in kept for step in steps):
        return
    kept = sorted({*kept, *exports_of(folder, job)})
    if missing := [step for step in steps if step not in kept]:
        listed = ", ".join(map(str, kept)) or "none"
        raise JobError(
            f"{folder.path} keeps no checkpoint of step {missing[0]}, and no export of it",
            f"kept: {listed}; checkpoints.keep_every keeps one at every n-th step for good, "
            "exports.every the files of the result",
        )


def checkpoints_of(folder: RunFolder) -> list[int]:
    """Return the steps of a run's checkpoints."""
    return [step for step, _ in list_checkpoints(folder.checkpoints)]


def named_for(job: Job, step: int) -> Job:
    """Return the job under a name that says the step: files of several lie in one folder."""
    return job.model_copy(update={"name": f"{job.name}-{name_of(step)}"})


def step_in(source: str) -> int | None:
    """Return the step that a run's weights are of, by where they came from; None of the result."""
    match = re.search(r"(?:^|-)step-(\d+)$", source)
    return int(match[1]) if match else None


def has_whole_model(folder: RunFolder) -> bool:
    """Say whether a run has ended in a whole model, and it still lies there."""
    return folder.result_is_whole() and (folder.final / "model_index.json").is_file()


def best_of(newest: Checkpoint, job: Job, ctx: EngineContext) -> Checkpoint:
    """Return the best checkpoint as of the newest one, where the job exports that."""
    best = Best(job.checkpoints.keep_best)
    with taking_back(newest):
        best.load(newest.numbers.get("best"), newest.folder.parent, ctx.warn)
    if best.rule is None or not best.rule.export or best.step is None:
        return newest
    try:
        return files.load(newest.folder.parent / name_of(best.step), WEIGHTS)
    except Damaged as error:
        ctx.warn(f"checkpoint {best.step}, the best, is damaged ({error}); using the newest")
        return newest
