"""What a run trained, opened again: from its newest or best checkpoint, or from its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.checkpoints import files
from dreambooth.engine.checkpoints.best import WEIGHTS, Best
from dreambooth.engine.checkpoints.optimizer import check_shapes
from dreambooth.engine.checkpoints.restoring import taking_back
from dreambooth.engine.session import trainable
from dreambooth.errors import JobError, RunError
from dreambooth.runs.checkpoints import Damaged, list_checkpoints, name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.nn import Parameter

    from dreambooth.engine.checkpoints.files import Checkpoint
    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import LoadedModel
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
    steps = [step for step, _ in list_checkpoints(folder.checkpoints)]
    if step is None and has_whole_model(folder) and ended >= max(steps, default=0):
        return job.model.at(folder.final).open(ctx), "final"
    opened = open_weights(ctx, folder, step)
    return opened.model, opened.source


def open_weights(ctx: EngineContext, folder: RunFolder, step: int | None = None) -> Opened:
    """Open the base with what a run trained on top.

    From the checkpoint of `step`, where one is given (`JobError` where there is none), else from
    the newest (its average, where the run keeps one). Without any from `final/`: where the policy
    can read that back, or where it holds the whole model. `RunError` where there is neither.
    """
    job = ctx.job
    found = checkpoint_of(folder, step) if step else files.newest(folder.checkpoints, ctx.warn)
    policy, source = job.freezing, job.model
    if found is not None:
        found = found if step else best_of(found, job, ctx)
    elif folder.result_is_whole() and (readable := policy.at(folder.final)) is not None:
        policy = readable
    elif has_whole_model(folder) and policy.artifacts == {"weights"}:
        source = source.at(folder.final)
    else:
        raise RunError(
            f"{folder.path} has neither a result nor a checkpoint yet",
            "run the job first, at least up to its first checkpoint",
        )
    model = source.open(ctx)
    policy.prepare(model, ctx)
    parameters = trainable(model, policy)
    if found is None:
        return Opened(model, parameters, "final")
    put_weights(ctx, parameters, found)
    return Opened(model, parameters, found.folder.name)


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
    """Return the weights of a step's checkpoint; `JobError` where it is not kept, or damaged."""
    require_steps(folder, [step])
    try:
        return files.load(folder.checkpoints / name_of(step), WEIGHTS)
    except Damaged as error:
        raise JobError(
            f"the checkpoint of step {step} is damaged ({error})", "take another step"
        ) from error


def require_steps(folder: RunFolder, steps: Sequence[int]) -> None:
    """Raise `JobError` where a run keeps no checkpoint of one of the steps."""
    kept = [step for step, _ in list_checkpoints(folder.checkpoints)]
    if missing := [step for step in steps if step not in kept]:
        listed = ", ".join(map(str, kept)) or "none"
        raise JobError(
            f"{folder.path} keeps no checkpoint of step {missing[0]}",
            f"kept: {listed}; checkpoints.keep_every keeps one at every n-th step for good",
        )


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
