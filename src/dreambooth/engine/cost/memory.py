"""Memory by phase: weights and states by their sizes, everything else counted on `meta` tensors.

Bytes are beyond what the program itself takes (the libraries, some 0.5 GiB).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.cost.live import AsComputed, peak
from dreambooth.engine.export import chosen_exporters
from dreambooth.engine.geometry import plain_geometry
from dreambooth.engine.pictures import decode, encode
from dreambooth.engine.session import MOMENTS_CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth.engine.context import EngineContext
    from dreambooth.engine.cost.residency import Phase, Residency
    from dreambooth.interfaces import Conditioning, LoadedModel
    from dreambooth.job import Job

CHECK_ROWS = 3
"""Rows of a forward when an export is compared."""


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes of one phase, at its peak."""

    phase: Phase
    weights: int
    """Of the parts that are in memory."""
    copy: int = 0
    """A frozen copy of the base, where the prior draws from one or the policy compares with one."""
    states: int = 0
    """Optimizer state and average."""
    working: int = 0
    """The most at once of what comes and goes: activations, gradients, pictures, casts."""

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.copy + self.states + self.working


class Counter:
    """Counts what forwards need, on a model of shapes alone (device `meta`)."""

    def __init__(self, job: Job, ctx: EngineContext, model: LoadedModel, device: str) -> None:
        self._job, self._model, self._device = job, model, device
        self._half = ctx.dtype
        latent = model.info.latent
        height, width = (side // latent.factor for side in job.data.size)
        self._shape = (latent.channels, height, width)
        for _, parameter in model.named_parameters("denoiser", "text_encoders"):
            parameter.data = parameter.data.to(ctx.dtype)
        cond = self._condition(1)
        self._row = self._peak(lambda: self._denoised(1, cond))

    def encoding(self) -> int:
        """Count a chunk of images on its way through the VAE."""
        return self._peak(lambda: encode(self._model, self._pixels(MOMENTS_CHUNK)))

    def drawing(self, pictures: int, trained: int = 0) -> int:
        """Count one sampling step of `pictures` pictures, both halves of guidance in one."""
        sampler = self._job.sampler
        halves = math.ceil(sampler.forwards() / max(1, sampler.sampling_steps()))
        return self.forward(pictures * max(1, halves), trained)

    def decoding(self, pictures: int) -> int:
        """Count pictures on their way through the VAE."""
        return self._peak(lambda: decode(self._model, self._latents(pictures)))

    def texts(self) -> int:
        """Count one prompt in the text encoders."""
        return self._peak(self._encoded)

    def forward(self, rows: int, trained: int = 0) -> int:
        """Count `rows` rows without gradients, and casts of `trained` weights in float32.

        Every row takes as much as the first.
        """
        cast = self._half.itemsize if self._half.itemsize < 4 else 0
        return rows * self._row + cast * trained

    def training(self, rows: int, prompts: int, trainable: Mapping[str, Parameter]) -> int:
        """Count forwards and backwards of a step, gradients included.

        `prompts` distinct ones are encoded in each forward; 0 where they are kept.
        """
        mode = AsComputed(self._half, self._device)
        kept = None if prompts else self._condition(rows)

        def step() -> None:
            for _ in range(min(2, self._job.train.accumulation)):
                target = self._latents(rows)
                cond = kept or self._condition(rows, prompts)
                difference = self._denoised(rows, cond) - target
                mode.leave()
                mode.backward(difference.square().flatten(1).mean(1).sum())

        with mode:
            most = peak(step, self._weights())
        for parameter in trainable.values():
            parameter.grad = None
        return most

    def _peak(self, compute: Callable[[], object]) -> int:
        with torch.no_grad(), AsComputed(self._half, self._device):
            return peak(compute, self._weights())

    def _weights(self) -> Iterable[Tensor]:
        for part in self._model.loaded():
            yield from self._model.parts[part].parameters()
            yield from self._model.parts[part].buffers()

    def _pixels(self, count: int) -> Tensor:
        return torch.empty(count, 3, *self._job.data.size, device="meta")

    def _latents(self, count: int) -> Tensor:
        return torch.empty(count, *self._shape, device="meta")

    def _encoded(self, count: int = 1) -> list[Conditioning]:
        prompt = self._job.subject.fill("{identifier} {class_noun}")
        return self._model.encode_prompts([prompt] * count)

    def _condition(self, rows: int, prompts: int = 1) -> Conditioning:
        encoded = self._encoded(prompts)
        spread = [encoded[row % prompts] for row in range(rows)]
        geometry = [plain_geometry(self._job.data.size)] * rows
        return self._model.condition(self._model.collate(spread), geometry)

    def _denoised(self, rows: int, cond: Conditioning) -> Tensor:
        t = torch.zeros(rows, dtype=torch.int64, device="meta")
        return self._model.denoise(self._latents(rows), t, cond).float()


def raise_masters(model: LoadedModel, trainable: Mapping[str, Parameter]) -> None:
    """Hold what trains in float32 and give it, alone, gradients."""
    wanted = {id(p) for p in trainable.values()}
    for _, parameter in model.named_parameters("denoiser", "text_encoders"):
        parameter.requires_grad_(False)
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(id(parameter) in wanted)


@dataclass(frozen=True)
class Weights:
    """Bytes of a part of the model."""

    parameters: int
    trained: int
    """How many of them train."""
    wide: int
    """Bytes of one that is frozen."""

    @property
    def loaded(self) -> int:
        """Before anything trains."""
        return self.wide * self.parameters

    @property
    def mastered(self) -> int:
        """With what trains in float32."""
        return self.wide * (self.parameters - self.trained) + 4 * self.trained


def phases(
    job: Job,
    residency: Residency,
    weights: Mapping[str, Weights],
    *,
    optimizer: int,
    average: int,
    working: Mapping[Phase, int],
) -> tuple[PhaseMemory, ...]:
    """Add a run's phases up; `working` holds what comes and goes in each."""
    found = []
    for phase, parts in residency.parts.items():
        before = phase in ("encoding", "class images", "class pictures")
        held = sum(w.loaded if before else w.mastered for n, w in weights.items() if n in parts)
        copied = residency.copies.get(phase, frozenset())
        looping = phase in ("training", "validation", "drawing")
        found.append(
            PhaseMemory(
                phase,
                weights=held,
                copy=sum(w.loaded for name, w in weights.items() if name in copied),
                states=optimizer * looping + average * (looping or phase == "export"),
                working=working[phase],
            )
        )
    return tuple(found)


def export_bytes(
    job: Job, residency: Residency, weights: Mapping[str, Weights], forward: int
) -> int:
    """Return what an export needs beside the live model: the files opened anew, and a forward.

    A file of adapters is opened onto the live base. Where that is held in half precision, it is
    widened to float32 for the comparison.
    """
    whole = any(exporter.reads_whole_model for exporter in chosen_exporters(job))
    opened = sum(4 * w.parameters for w in weights.values()) if whole else 0
    widened = sum(
        4 * (w.parameters - w.trained)
        for name, w in weights.items()
        if name not in residency.full and w.wide < 4
    )
    return opened + widened + forward
