"""The plan: what a run will do, train and cost, counted before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.checkpoints.rotation import checkpoint_bytes
from dreambooth.engine.context import EngineContext
from dreambooth.engine.cost import counting, prices
from dreambooth.engine.cost import memory as cost
from dreambooth.engine.cost.residency import LOOPING, residency_of
from dreambooth.engine.data.fixed import split
from dreambooth.engine.data.text import run_prompts
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.machine import default_device, pick_device
from dreambooth.engine.session import trainable as trained
from dreambooth.engine.stages import notes
from dreambooth.engine.watching.validation import evaluations

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch.nn import Parameter

    from dreambooth.engine.cost.memory import PhaseMemory
    from dreambooth.engine.cost.residency import Phase, Residency
    from dreambooth.engine.reporting import Reporter
    from dreambooth.interfaces import LoadedModel, Scan
    from dreambooth.job import Job

FORWARDS_A_STEP = 3
"""A training row costs about three forwards: its own, and twice that for the backward pass."""


@dataclass(frozen=True)
class PartPlan:
    """One part of the model."""

    name: str
    parameters: int
    trainable: int
    bytes: int
    """Weights, gradients, optimizer state and average while training; 0 once it has left memory."""
    optimizer: int = 0
    """Optimizer state alone."""


@dataclass(frozen=True)
class Memory:
    """Bytes while training, estimated."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    copy: int = 0
    """A frozen copy of the base, where the prior draws from one or the policy compares with one."""

    @property
    def total(self) -> int:
        """All of it together."""
        states = self.gradients + self.optimizer + self.average
        return self.weights + self.copy + states + self.activations


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    scan: Scan
    prompts: tuple[str, ...]
    parts: tuple[PartPlan, ...]
    notes: tuple[str, ...]
    """What the freezing policy says of itself: counts, ranks, stages."""
    memory: Memory
    """While training."""
    phases: tuple[PhaseMemory, ...]
    """Memory of every phase the run has, in their order."""
    device: str
    precision: str
    rows: int
    """Rows of one forward, class rows included."""
    epochs: float
    class_pictures: int
    class_cached: int
    class_note: str
    class_steps: float
    """What drawing the missing class images costs, in training steps."""
    sample_pictures: int
    sample_steps: float
    """What all samples cost, in training steps."""
    held_out: tuple[str, ...]
    """Images that are never trained on."""
    evaluations: int
    evaluation_rows: int
    """Rows of one evaluation, class rows included."""
    evaluation_steps: float
    """What all evaluations cost, in training steps."""
    checkpoint_bytes: int
    exported_steps: int
    """At how many steps on the way the result is exported."""
    export_bytes: int
    """What the files of one of them take."""
    folder: Path
    resumes_at: int
    """Step at which the run goes on; 0 for a fresh run."""
    trains: tuple[str, ...] = ()
    """Qualified names of the parameters that train."""

    @property
    def largest(self) -> PhaseMemory:
        """The phase that takes the most memory."""
        return max(self.phases, key=lambda phase: phase.total)


def make_plan(
    job: Job,
    reporter: Reporter,
    *,
    resumes_at: int = 0,
    fresh: bool = False,
    processes: int = 1,
) -> Plan:
    """Count with the real model's shapes on the `meta` device: no weights are read.

    `resumes_at`: the step at which the run will begin (see `runs.outlook`); `fresh`: no run that is
    there has a say. `processes` share each optimizer step; memory is one process's, prices are in
    steps all of them take part in.
    """
    from dreambooth.runs.folder import RunFolder

    device = pick_device(job.train.device) or default_device()
    recorded = {} if fresh else RunFolder(job.folder).read_manifest().get("machine", {})
    precision = precision_of(job, device, recorded.get("precision"))
    ctx = EngineContext(job, torch.device("meta"), precision, job.folder, reporter)
    scan = job.data.scan(ctx)
    images = split(job, scan.items)
    model = job.model.open(ctx)
    schedule = job.scheduler.open(model.info)
    cached = job.prior.cached(ctx, model, job.sampler, schedule)
    trainable, parts, phases = count_model(job, ctx, model, scan, device.type)
    per_step = job.train.batch_size * job.train.accumulation * processes
    share = 2 if job.prior.has_rows() else 1
    step_forwards = FORWARDS_A_STEP * per_step * share
    price = job.prior.cost(job)
    return Plan(
        scan=scan,
        prompts=tuple(job.data.prompts(scan.items, job.subject)),
        parts=parts,
        notes=tuple(notes(ctx, model, list(trainable))),
        trains=tuple(trainable),
        memory=while_steps(phases, parts),
        phases=phases,
        device=str(device),
        precision=precision.name,
        rows=job.train.batch_size * share,
        epochs=job.train.steps * per_step / len(images.training),
        class_pictures=price.pictures,
        class_cached=cached,
        class_note=price.note,
        class_steps=prices.class_rows(price, cached) / step_forwards,
        sample_pictures=prices.sample_count(job),
        sample_steps=prices.sample_rows(job, schedule) / step_forwards,
        held_out=tuple(item.id for item in images.held_out),
        evaluations=evaluations(job),
        evaluation_rows=job.validation.rows * share,
        evaluation_steps=evaluations(job) * job.validation.rows * share / step_forwards,
        checkpoint_bytes=checkpoint_bytes(job, [p.numel() for p in trainable.values()]),
        exported_steps=prices.exported_steps(job),
        export_bytes=prices.export_bytes(job, *totals(parts)),
        folder=job.folder,
        resumes_at=resumes_at,
    )


def totals(parts: Sequence[PartPlan]) -> tuple[int, int]:
    """Return how many parameters train, and how many there are."""
    return sum(part.trainable for part in parts), sum(part.parameters for part in parts)


def count_model(
    job: Job, ctx: EngineContext, model: LoadedModel, scan: Scan, device: str
) -> tuple[dict[str, Parameter], tuple[PartPlan, ...], tuple[PhaseMemory, ...]]:
    """Take the model of shapes through a run's phases, in the session's order.

    Returns what trains, by qualified name, the parts, and the memory of each phase.
    """
    residency = residency_of(job, model.info, scan.items)
    counter = counting.Counter(job, ctx, model, device)
    working = counting.before_training(job, counter, residency, len(scan.items))
    job.freezing.prepare(model, ctx)
    trainable = trained(model, job.freezing)
    residency = residency_of(job, model.info, scan.items, counting.parts_of(trainable))
    counting.prepare_shapes(job, model, trainable)
    working |= counting.while_training(job, counter, residency, trainable)
    if residency.keeps_texts:
        texts = counter.kept(len(run_prompts(ctx, scan.items)))
        working |= {phase: size + texts for phase, size in working.items() if phase in LOOPING}
    parts = count_parts(job, ctx, model, trainable, residency)
    texts_alone = residency.parts.get("texts", frozenset()) <= set(
        model.info.part_names("text_encoders")
    )
    singly = texts_alone and model.encodes_apart()
    return trainable, parts, memory_by_phase(job, ctx, residency, parts, working, singly)


def memory_by_phase(
    job: Job,
    ctx: EngineContext,
    residency: Residency,
    parts: Sequence[PartPlan],
    working: dict[Phase, int],
    singly: bool,
) -> tuple[PhaseMemory, ...]:
    """Put what is in memory and what comes and goes together, phase by phase."""
    weights = {
        part.name: cost.Weights(
            part.parameters, part.trainable, residency.dtype(part.name, ctx.dtype).itemsize
        )
        for part in parts
    }
    optimizer = sum(part.optimizer for part in parts)
    average = sum(part.trainable for part in parts) * 4 if job.train.ema else 0
    working["export"] += cost.opened_bytes(job, residency, weights)
    return cost.phases(
        residency,
        weights,
        optimizer=optimizer,
        average=average,
        working=working,
        singly=singly,
        libraries=cost.CUBLAS if ctx.precision.device.type == "cuda" else 0,
    )


def while_steps(phases: Sequence[PhaseMemory], parts: Sequence[PartPlan]) -> Memory:
    """Split what training takes by what it is for."""
    [training] = (phase for phase in phases if phase.phase == "training")
    optimizer = sum(part.optimizer for part in parts)
    gradients = 4 * sum(part.trainable for part in parts)
    return Memory(
        weights=training.weights,
        gradients=gradients,
        optimizer=optimizer,
        average=training.states - optimizer,
        activations=max(0, training.working - gradients),
        copy=training.copy,
    )


def count_parts(
    job: Job,
    ctx: EngineContext,
    model: LoadedModel,
    trainable: Mapping[str, Parameter],
    residency: Residency,
) -> tuple[PartPlan, ...]:
    """Count parameters and bytes a part: what trains in float32, the rest in the run's dtype."""
    by_part: dict[str, list[Parameter]] = {}
    for name, parameter in trainable.items():
        by_part.setdefault(name.split(".", 1)[0], []).append(parameter)
    counts = []
    for part in model.info.parts:
        total = sum(p.numel() for p in model.parts[part].parameters())
        trained = by_part.get(part, [])
        train = sum(p.numel() for p in trained)
        wide = residency.dtype(part, ctx.dtype).itemsize
        stays = part in residency.parts["training"]
        held = wide * (total - train) + trained_bytes(job, trained) if stays else 0
        state = sum(optimizer_bytes(job, p.numel()) for p in trained)
        counts.append(PartPlan(part, total, train, held, state))
    return tuple(counts)


def trained_bytes(job: Job, trained: Iterable[Parameter]) -> int:
    """Return the bytes of what trains: weights, gradients, optimizer state, average."""
    each = 4 + 4 + (4 if job.train.ema else 0)
    return sum(each * p.numel() + optimizer_bytes(job, p.numel()) for p in trained)


def optimizer_bytes(job: Job, size: int) -> int:
    """Return the bytes of optimizer state of a tensor of `size` numbers."""
    return round(job.optimizer.state_bytes(size) * size)
