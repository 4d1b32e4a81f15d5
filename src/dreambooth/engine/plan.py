"""The plan: what a run will do, train and cost, counted before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter

from dreambooth.engine.batches import plain_geometry
from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices import pick_device
from dreambooth.engine.precision import choose

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

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


@dataclass(frozen=True)
class Memory:
    """Bytes while training, estimated."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    scan: Scan
    prompts: tuple[str, ...]
    parts: tuple[PartPlan, ...]
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
    checkpoint_bytes: int
    checkpoint_count: int
    folder: Path
    resumes_at: int
    """Step of the newest checkpoint; 0 for a fresh run."""


def make_plan(job: Job, reporter: Reporter) -> Plan:
    """Count with the real model's shapes on the `meta` device: no weights are read."""
    from dreambooth.engine.checkpoint import list_checkpoints
    from dreambooth.run_folder import RunFolder

    device = pick_device(job.train.device) or default_device()
    precision = choose(job.train.precision, device)
    ctx = EngineContext(job, torch.device("meta"), precision, job.folder, reporter)
    scan = job.data.scan(ctx)
    model = job.model.open(ctx)
    schedule = job.scheduler.open(model.info)
    cached = job.prior.cached(ctx, model, job.sampler, schedule)
    job.freezing.prepare(model, ctx)
    trainable = dict(job.freezing.trainable(model))
    parts = count_parts(model, trainable)
    per_step = job.train.batch_size * job.train.accumulation
    share = 2 if job.prior.has_rows() else 1
    step_forwards = FORWARDS_A_STEP * per_step * share
    cost = job.prior.cost(job)
    missing = 1 - cached / cost.pictures if cost.pictures else 0.0
    pictures = sample_count(job)
    memory = estimate_memory(job, ctx, model, trainable, job.train.batch_size * share)
    return Plan(
        scan=scan,
        prompts=tuple(job.data.prompts(scan.items, job.subject)),
        parts=parts,
        memory=memory,
        device=str(device),
        precision=precision.name,
        rows=job.train.batch_size * share,
        epochs=job.train.steps * per_step / len(scan.items),
        class_pictures=cost.pictures,
        class_cached=cached,
        class_note=cost.note,
        class_steps=cost.forwards * missing / step_forwards,
        sample_pictures=pictures,
        sample_steps=pictures * job.sampler.forwards() / step_forwards,
        checkpoint_bytes=memory.gradients + memory.optimizer + memory.average,
        checkpoint_count=-(-job.train.steps // job.checkpoints.every),
        folder=job.folder,
        resumes_at=max(
            (s for s, _ in list_checkpoints(RunFolder(job.folder).checkpoints)), default=0
        ),
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


def count_parts(model: LoadedModel, trainable: dict[str, Parameter]) -> tuple[PartPlan, ...]:
    """Count parameters, all and trainable, a part."""
    counts = []
    for part in model.info.parts:
        total = sum(p.numel() for p in model.parts[part].parameters())
        train = sum(p.numel() for n, p in trainable.items() if n.split(".", 1)[0] == part)
        counts.append(PartPlan(part, total, train))
    return tuple(counts)


def estimate_memory(
    job: Job,
    ctx: EngineContext,
    model: LoadedModel,
    trainable: dict[str, Parameter],
    rows: int,
) -> Memory:
    """Estimate bytes while training: exact for weights and states, counted for activations."""
    wide = ctx.dtype.itemsize
    count = sum(p.numel() for p in trainable.values())
    trained_parts = {name.split(".", 1)[0] for name in trainable}
    stay = trained_parts | set(model.info.part_names("denoiser"))
    if job.samples.every:
        stay |= set(model.info.part_names("vae"))
    frozen = sum(p.numel() for part in stay for p in model.parts[part].parameters()) - count
    saved = activation_bytes(job, model, trainable, rows)
    return Memory(
        weights=4 * count + wide * frozen,
        gradients=4 * count,
        optimizer=int(job.optimizer.state_bytes() * count),
        average=4 * count if job.train.ema else 0,
        activations=saved * wide // 4,
    )


def activation_bytes(
    job: Job, model: LoadedModel, trainable: dict[str, Parameter], rows: int
) -> int:
    """Count the float32 bytes autograd keeps from one forward, by running it on `meta` tensors."""
    wanted = {id(p) for p in trainable.values()}
    parts = sorted({name.split(".", 1)[0] for name in trainable})
    for part in model.info.parts:
        for p in model.parts[part].parameters():
            p.requires_grad_(id(p) in wanted)
    if job.train.gradient_checkpointing:
        model.enable_gradient_checkpointing(parts)
        for part in parts:
            model.parts[part].train()
    saved: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, Parameter):
            saved[id(base)] = (base, base.numel() * base.element_size())
        return tensor

    latent = model.info.latent
    height, width = (side // latent.factor for side in job.data.size)
    z = torch.empty(rows, latent.channels, height, width, device="meta")
    t = torch.zeros(rows, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoded = model.encode_prompts([job.subject.fill("{identifier} {class_noun}")] * rows)
        geometry = [plain_geometry(job.data.size)] * rows
        cond = model.condition(model.collate(encoded), geometry)
        out = model.denoise(z, t, cond)
    return sum(size for _, size in saved.values()) + prod(out.shape) * 4
