"""The plan: what a run will do, train and cost, counted before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.activations import activation_bytes
from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices import pick_device
from dreambooth.engine.pacing import checkpoint_bytes
from dreambooth.engine.precision import resolve
from dreambooth.engine.stages import notes
from dreambooth.engine.validation import evaluations, split

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch.nn import Parameter

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
    folder: Path
    resumes_at: int
    """Step of the newest checkpoint; 0 for a fresh run."""


def make_plan(job: Job, reporter: Reporter, *, fresh: bool = False, processes: int = 1) -> Plan:
    """Count with the real model's shapes on the `meta` device: no weights are read.

    `fresh`: as if no run of that name were there. `processes` share each optimizer step; memory
    is one process's, prices are in steps all of them take part in.
    """
    from dreambooth.engine.checkpoint import list_checkpoints
    from dreambooth.run_folder import RunFolder

    device = pick_device(job.train.device) or default_device()
    run = RunFolder(job.folder)
    recorded = {} if fresh else run.read_manifest().get("machine", {})
    precision = resolve(job, device, recorded.get("precision"))
    ctx = EngineContext(job, torch.device("meta"), precision, job.folder, reporter)
    scan = job.data.scan(ctx)
    images = split(job, scan.items)
    model = job.model.open(ctx)
    schedule = job.scheduler.open(model.info)
    cached = job.prior.cached(ctx, model, job.sampler, schedule)
    job.freezing.prepare(model, ctx)
    trainable = dict(job.freezing.trainable(model))
    parts = count_parts(job, ctx, model, trainable, scan)
    per_step = job.train.batch_size * job.train.accumulation * processes
    share = 2 if job.prior.has_rows() else 1
    step_forwards = FORWARDS_A_STEP * per_step * share
    cost = job.prior.cost(job)
    missing = 1 - cached / cost.pictures if cost.pictures else 0.0
    pictures = sample_count(job)
    saved = [step for step, _ in list_checkpoints(run.checkpoints)]
    memory = estimate_memory(job, ctx, model, trainable, parts, job.train.batch_size * share)
    return Plan(
        scan=scan,
        prompts=tuple(job.data.prompts(scan.items, job.subject)),
        parts=parts,
        notes=tuple(notes(ctx, model, list(trainable))),
        memory=memory,
        device=str(device),
        precision=precision.name,
        rows=job.train.batch_size * share,
        epochs=job.train.steps * per_step / len(images.training),
        class_pictures=cost.pictures,
        class_cached=cached,
        class_note=cost.note,
        class_steps=cost.forwards * missing / step_forwards,
        sample_pictures=pictures,
        sample_steps=pictures * job.sampler.forwards() / step_forwards,
        held_out=tuple(item.id for item in images.held_out),
        evaluations=evaluations(job),
        evaluation_rows=job.validation.rows * share,
        evaluation_steps=evaluations(job) * job.validation.rows * share / step_forwards,
        checkpoint_bytes=checkpoint_bytes(job, [p.numel() for p in trainable.values()]),
        folder=job.folder,
        resumes_at=0 if fresh or not saved else max(saved),
    )


def default_device() -> torch.device:
    """Return what `auto` would take, without opening it."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def sample_count(job: Job) -> int:
    """Return how many preview pictures a whole run draws."""
    if not job.samples.every:
        return 0
    return (
        -(-job.train.steps // job.samples.every) * len(job.samples.prompts) * job.samples.per_prompt
    )


def staying_parts(job: Job, model: LoadedModel, trained: set[str], scan: Scan) -> set[str]:
    """Return the parts that are in memory while training: the others are cached and released."""
    stay = trained | set(model.info.part_names("denoiser"))
    countable = all(job.data.variants(item) is not None for item in scan.items)
    if job.samples.every or not job.train.cache or not countable:
        stay |= set(model.info.part_names("vae"))
    if not job.train.cache:
        stay |= set(model.info.part_names("text_encoders"))
    return stay


def count_parts(
    job: Job,
    ctx: EngineContext,
    model: LoadedModel,
    trainable: dict[str, Parameter],
    scan: Scan,
) -> tuple[PartPlan, ...]:
    """Count parameters and bytes a part: what trains in float32, the rest in the run's dtype."""
    by_part: dict[str, list[Parameter]] = {}
    for name, parameter in trainable.items():
        by_part.setdefault(name.split(".", 1)[0], []).append(parameter)
    stay = staying_parts(job, model, set(by_part), scan)
    counts = []
    for part in model.info.parts:
        total = sum(p.numel() for p in model.parts[part].parameters())
        trained = by_part.get(part, [])
        train = sum(p.numel() for p in trained)
        wide = 4 if part in model.info.part_names("vae") else ctx.dtype.itemsize
        held = wide * (total - train) + trained_bytes(job, trained) if part in stay else 0
        counts.append(PartPlan(part, total, train, held))
    return tuple(counts)


def trained_bytes(job: Job, trained: Iterable[Parameter]) -> int:
    """Return the bytes of what trains: weights, gradients, optimizer state, average."""
    each = 4 + 4 + (4 if job.train.ema else 0)
    return sum(each * p.numel() + optimizer_bytes(job, p.numel()) for p in trained)


def optimizer_bytes(job: Job, size: int) -> int:
    """Return the bytes of optimizer state of a tensor of `size` numbers."""
    return round(job.optimizer.state_bytes(size) * size)


def copied_bytes(
    job: Job, ctx: EngineContext, model: LoadedModel, parts: tuple[PartPlan, ...]
) -> int:
    """Return the bytes of a frozen copy of the base, where the prior or the policy keeps one.

    Where no text encoder trains, that of the copy leaves memory like the trained model's own.
    """
    if not (job.prior.cost(job).keeps_base or job.freezing.keeps_base()):
        return 0
    texts = set(model.info.part_names("text_encoders"))
    text_stays = not job.train.cache or any(p.trainable for p in parts if p.name in texts)
    names = set(model.info.part_names("denoiser")) | (texts if text_stays else set())
    return sum(ctx.dtype.itemsize * p.parameters for p in parts if p.name in names)


def estimate_memory(
    job: Job,
    ctx: EngineContext,
    model: LoadedModel,
    trainable: dict[str, Parameter],
    parts: tuple[PartPlan, ...],
    rows: int,
) -> Memory:
    """Estimate bytes while training: exact for weights and states, counted for activations."""
    count = sum(part.trainable for part in parts)
    optimizer = sum(optimizer_bytes(job, p.numel()) for p in trainable.values())
    average = 4 * count if job.train.ema else 0
    saved = activation_bytes(job, model, trainable, rows)
    return Memory(
        weights=sum(part.bytes for part in parts) - 4 * count - optimizer - average,
        gradients=4 * count,
        optimizer=optimizer,
        average=average,
        activations=saved * ctx.dtype.itemsize // 4,
        copy=copied_bytes(job, ctx, model, parts),
    )
