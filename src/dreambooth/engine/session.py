"""Set-up of a run: everything a training step needs, opened in the order that saves memory."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.engine.batches import Batches, variant_offsets
from dreambooth.engine.cost.residency import residency_of
from dreambooth.engine.data import text
from dreambooth.engine.data.fixed import Split, fixed_batch, split
from dreambooth.engine.data.moments import open_moments
from dreambooth.engine.devices.parallel import Parallel, parallel_for
from dreambooth.engine.stages import Stages, first_steps, notes, stages_of
from dreambooth.engine.state import TrainState
from dreambooth.errors import RunError
from dreambooth.files import store_trouble
from dreambooth.helpers.pictures import encode
from dreambooth.plugins.faults import refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.nn import Parameter

    from dreambooth.engine.batches import Batch
    from dreambooth.engine.context import EngineContext
    from dreambooth.engine.cost.residency import Phase, Residency
    from dreambooth.engine.devices.compiling import Compiled
    from dreambooth.interfaces import (
        FreezingPolicy,
        LoadedModel,
        NoiseSchedule,
        PriorSet,
        Scan,
    )
    from dreambooth.job import Job


@dataclass
class Session:
    """A run that is set up."""

    ctx: EngineContext
    model: LoadedModel
    schedule: NoiseSchedule
    scan: Scan
    prior: PriorSet
    batches: Batches
    state: TrainState
    stages: Stages
    split: Split
    """Which of the scan's items train, and which are held out."""
    residency: Residency
    """Which part of the model is in memory in which phase."""
    parallel: Parallel = field(default_factory=Parallel)
    """How the processes of the run share a step."""
    fixed: Batch | None = None
    """The batch of validation, where the job has one."""
    compiled: Compiled | None = None
    """The parts a training step runs through, compiled, where `train.compile` says so."""
    answers_are_finite: bool = False
    """Whether what plugins compute in a step was looked at already (`nonfinite`)."""

    @property
    def trained_parts(self) -> set[str]:
        """Names of the parts of which something trains."""
        return {name.split(".", 1)[0] for name in self.state.parameters}

    @property
    def job(self) -> Job:
        """The job being run."""
        return self.ctx.job

    def enter(self, phase: Phase) -> None:
        """Let the parts leave memory that have no place in a phase."""
        self.residency.enter(phase, self.model)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Be in a phase between steps for the block."""
        self.enter(phase)
        try:
            yield
        finally:
            self.enter("training")


def open_session(ctx: EngineContext, scan: Scan) -> Session:
    """Load, cache and prepare: texts first, then images, then the prior, then what trains.

    Parts come into memory when first asked for and leave before a phase that has no need of them:
    text encoders, VAE and denoiser are never there together unless they train together.
    """
    if trouble := store_trouble():
        ctx.warn(trouble)
    job = ctx.job
    parts = split(job, scan.items)
    model = job.model.open(ctx)
    schedule = job.scheduler.open(model.info)
    residency = residency_of(job, model.info, scan.items)
    residency.enter("texts", model)
    text.encode_first(ctx, model, scan.items, residency, draws_first(ctx, model, schedule))
    residency.enter("encoding", model)
    moments = open_moments(ctx, model, scan.items) if residency.keeps_latents else None
    residency.enter("class images", model)
    prior = job.prior.open(ctx, model, job.sampler, schedule)
    residency.enter("training", model)
    parameters = prepare_training(ctx, model)
    trained = {name.split(".", 1)[0] for name in parameters}
    residency = residency_of(job, model.info, scan.items, trained)
    text.settle(ctx, model, scan.items, residency)
    residency.enter("training", model)
    state = open_state(ctx, parameters)
    for note in notes(ctx, model, list(parameters)):
        ctx.reporter.info(note)
    stages = Stages(ctx, model, parameters, text.run_prompts(ctx, scan.items))
    state.while_showing = stages.without_kept_texts

    offsets = variant_offsets(job.data, scan.items) if moments is not None else {}
    batches = Batches(
        ctx, job.data, parts.training, prior, schedule, moments, offsets, partial(encode, model)
    )
    session = Session(ctx, model, schedule, scan, prior, batches, state, stages, parts, residency)
    session.parallel = parallel_for(ctx.devices, model, parameters)
    if job.validation.every:
        session.fixed = fixed_batch(ctx, batches, schedule, prior, parts)
    return session


def draws_first(ctx: EngineContext, model: LoadedModel, schedule: NoiseSchedule) -> bool:
    """Say whether class images have to be drawn before the first step: the store lacks some."""
    prior, opened = ctx.job.prior, len(ctx.stores)
    pictures = prior.cost(ctx.job).pictures
    lacks = bool(pictures) and prior.cached(ctx, model, ctx.job.sampler, schedule) < pictures
    del ctx.stores[opened:]  # only looked at
    return ctx.share(lacks)


def prepare_training(ctx: EngineContext, model: LoadedModel) -> dict[str, Parameter]:
    """Let the policy prepare the model and name what trains; freeze the rest.

    What trains is cast to float32 whatever the base's precision: bfloat16 weights lose updates
    that are small against them.
    """
    policy = ctx.job.freezing
    policy.prepare(model, ctx)
    parameters = trainable(model, policy)
    wanted = {id(p) for p in parameters.values()}
    for part in model.loaded():
        for parameter in model.parts[part].parameters():
            parameter.requires_grad_(id(parameter) in wanted)
    trained = sorted({name.split(".", 1)[0] for name in parameters})
    restore_masters(model, parameters)
    if ctx.job.train.gradient_checkpointing:
        # Gradients of a text encoder run through the denoiser, trained or not.
        passed = {*trained, *model.info.part_names("denoiser")}
        model.enable_gradient_checkpointing(sorted(passed))
    for part in trained:
        model.parts[part].train()
    return parameters


def restore_masters(model: LoadedModel, parameters: Mapping[str, Parameter]) -> None:
    """Give what trains float32 values, unrounded ones where the source has them."""
    rounded = {n: p for n, p in parameters.items() if p.dtype != torch.float32}
    for part in sorted({name.split(".", 1)[0] for name in rounded}):
        stored = model.stored_weights(part)
        for name, parameter in rounded.items():
            if name.split(".", 1)[0] == part:
                exact = stored.get(name, parameter.data)
                parameter.data = exact.to(parameter.device, torch.float32)


def trainable(model: LoadedModel, policy: FreezingPolicy) -> dict[str, Parameter]:
    """Return what a policy lets train, and hold it to its contract: something trains, under the
    model's own names."""
    parameters = dict(policy.trainable(model))
    if not parameters:
        raise RunError(
            f'freezing policy "{policy.kind}" leaves nothing to train in this model',
            "check its options against the model's parameter names",
        )
    parts = sorted({name.split(".", 1)[0] for name in parameters})
    if unknown := [part for part in parts if part not in model.info.parts]:
        raise refused(
            policy,
            "trainable",
            f"names parameters of unknown parts: {', '.join(unknown)}; qualified names begin with "
            f"one of: {', '.join(model.info.parts)}",
        )
    known = dict(model.named_parameters(*parts))
    if strangers := [n for n, p in parameters.items() if known.get(n) is not p]:
        raise refused(
            policy,
            "trainable",
            f"returned {strangers[0]!r}, which is no parameter of the model under that name: "
            "return names and parameters as LoadedModel.named_parameters yields them",
        )
    return parameters


def open_state(ctx: EngineContext, parameters: Mapping[str, Parameter]) -> TrainState:
    """Build the optimizer over the policy's groups."""
    job = ctx.job
    groups: list[dict[str, Any]] = []
    starts: dict[int, int] = {}
    begins = first_steps(stages_of(job.freezing, list(parameters), job.train.steps))
    for group in job.freezing.groups(list(parameters)):
        options = {"lr": group.lr, "weight_decay": group.weight_decay}
        set_ones = {k: v for k, v in options.items() if v is not None}
        # What starts later has a warm-up, and so a rate, of its own.
        warm_up = job.lr_schedule.warmup_steps > 0
        begun = {n: begins[n] if warm_up else 0 for n in group.names}
        for start in sorted(set(begun.values())):
            named = [parameters[n] for n in group.names if begun[n] == start]
            groups.append({"params": named, **set_ones})
            starts |= dict.fromkeys(map(id, named), start)
    optimizer = job.optimizer.build(groups)
    return TrainState(
        parameters=parameters,
        optimizer=optimizer,
        scaler=ctx.precision.scaler(),
        base_lrs=[group["lr"] for group in optimizer.param_groups],
        starts=[min(starts[id(p)] for p in g["params"]) for g in optimizer.param_groups],
        ema_decay=job.train.ema.decay if job.train.ema else None,
    )
