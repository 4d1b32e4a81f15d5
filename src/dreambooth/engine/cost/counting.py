"""What comes and goes in each phase, counted on a model of shapes alone (device `meta`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.cost.activations import AsComputed, peak
from dreambooth.engine.data.geometry import plain_geometry
from dreambooth.engine.data.moments import MOMENTS_CHUNK
from dreambooth.engine.data.text import HELD
from dreambooth.helpers.pictures import decode, encode
from dreambooth.jobs.samplers import drawn_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth.engine.context import EngineContext
    from dreambooth.engine.cost.residency import Phase, Residency
    from dreambooth.interfaces import Conditioning, LoadedModel, Sampler
    from dreambooth.job import Job
    from dreambooth.jobs.samplers import Together

CHECK_ROWS = 3
"""Rows of a forward when an export is compared."""


class Counter:
    """Counts what forwards need, on a model of shapes alone (device `meta`)."""

    def __init__(self, job: Job, ctx: EngineContext, model: LoadedModel, device: str) -> None:
        self._job, self._model, self._device = job, model, device
        self._half = ctx.dtype
        for part in model.info.parts:  # one that loads in what is counted would count as well
            _ = model.parts[part]
        for _, parameter in model.named_parameters("denoiser", "text_encoders"):
            parameter.data = parameter.data.to(ctx.dtype)
        self._rows: dict[tuple[int, int], int] = {}

    def encoding(self, images: int) -> int:
        """Count images on their way through the VAE, a chunk of them at most."""
        count = min(MOMENTS_CHUNK, images)
        return self._peak(lambda: encode(self._model, self._pixels(count)), torch.float32)

    def drawing(
        self,
        pictures: int,
        trained: int = 0,
        *,
        sampler: Sampler | None = None,
        size: tuple[int, int] | None = None,
    ) -> int:
        """Count one sampling step of `pictures` pictures, both halves of guidance in one.

        By the job's sampler and at its training size where no others are named.
        """
        sampler = sampler or self._job.sampler
        halves = math.ceil(sampler.forwards() / max(1, sampler.sampling_steps()))
        return self.forward(pictures * max(1, halves), trained, size)

    def decoding(self, pictures: int, size: tuple[int, int] | None = None) -> int:
        """Count pictures on their way through the VAE."""
        latents = self._latents(pictures, size)
        return self._peak(lambda: decode(self._model, latents), torch.float32)

    def texts(self) -> int:
        """Count one prompt in the text encoders."""
        return self._peak(self._encoded)

    def kept(self, prompts: int) -> int:
        """Count the texts that stay in memory while training."""
        [row] = self._encoded()
        of_one = sum(t.numel() for t in row.tensors.values()) * self._half.itemsize
        return min(HELD, prompts * of_one)

    def forward(self, rows: int, trained: int = 0, size: tuple[int, int] | None = None) -> int:
        """Count `rows` rows without gradients, and casts of `trained` weights in float32.

        Every row takes as much as the first.
        """
        cast = self._half.itemsize if self._half.itemsize < 4 else 0
        return rows * self._row(size or self._job.data.size) + cast * trained

    def _row(self, size: tuple[int, int]) -> int:
        if size not in self._rows:
            cond = self._condition(1, size=size)
            self._rows[size] = self._peak(lambda: self._denoised(1, cond, size))
        return self._rows[size]

    def training(self, rows: int, prompts: int, trainable: Mapping[str, Parameter]) -> int:
        """Count forwards and backwards of a step, gradients included.

        `prompts` distinct ones are encoded in each forward; 0 where they are kept.
        """
        mode = self._computing()
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

    def _peak(self, compute: Callable[[], object], dtype: torch.dtype | None = None) -> int:
        with torch.no_grad(), self._computing(dtype):
            return peak(compute, self._weights())

    def _computing(self, dtype: torch.dtype | None = None) -> AsComputed:
        """Compute in the run's type, or in another one: VAEs are in float32 whatever that is."""
        blocked = self._device == "cpu" and torch.backends.mkldnn.is_available()
        return AsComputed(dtype or self._half, self._device, blocked=blocked)

    def _weights(self) -> Iterable[Tensor]:
        for part in self._model.loaded():
            yield from self._model.parts[part].parameters()
            yield from self._model.parts[part].buffers()

    def _pixels(self, count: int) -> Tensor:
        return torch.empty(count, 3, *self._job.data.size, device="meta")

    def _latents(self, count: int, size: tuple[int, int] | None = None) -> Tensor:
        latent = self._model.info.latent
        height, width = (side // latent.factor for side in size or self._job.data.size)
        return torch.empty(count, latent.channels, height, width, device="meta")

    def _encoded(self, count: int = 1) -> list[Conditioning]:
        prompt = self._job.subject.fill("{identifier} {class_noun}")
        return self._model.encode_prompts([prompt] * count)

    def _condition(
        self, rows: int, prompts: int = 1, size: tuple[int, int] | None = None
    ) -> Conditioning:
        encoded = self._encoded(prompts)
        spread = [encoded[row % prompts] for row in range(rows)]
        geometry = [plain_geometry(size or self._job.data.size)] * rows
        return self._model.condition(self._model.collate(spread), geometry)

    def _denoised(
        self, rows: int, cond: Conditioning, size: tuple[int, int] | None = None
    ) -> Tensor:
        t = torch.zeros(rows, dtype=torch.int64, device="meta")
        return self._model.denoise(self._latents(rows, size), t, cond).float()


def raise_masters(model: LoadedModel, trainable: Mapping[str, Parameter]) -> None:
    """Hold what trains in float32 and give it, alone, gradients."""
    wanted = {id(p) for p in trainable.values()}
    for _, parameter in model.named_parameters("denoiser", "text_encoders"):
        parameter.requires_grad_(False)
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(id(parameter) in wanted)


def parts_of(trainable: Mapping[str, Parameter]) -> set[str]:
    """Return the parts in which something trains."""
    return {name.split(".", 1)[0] for name in trainable}


def prepare_shapes(job: Job, model: LoadedModel, trainable: Mapping[str, Parameter]) -> None:
    """Bring a model of shapes alone into the state that `session.prepare_training` makes."""
    raise_masters(model, trainable)
    if job.train.gradient_checkpointing:
        passed = parts_of(trainable) | set(model.info.part_names("denoiser"))
        model.enable_gradient_checkpointing(sorted(passed))
    for part in sorted(parts_of(trainable)):
        model.parts[part].train()


def before_training(
    job: Job, counter: Counter, residency: Residency, images: int
) -> dict[Phase, int]:
    """Count what comes and goes in the phases in which nothing trains yet, of so many images."""
    working: dict[Phase, int] = {}
    if "texts" in residency.parts:
        working["texts"] = counter.texts()
    if "encoding" in residency.parts:
        working["encoding"] = counter.encoding(images)
    if "class images" in residency.parts:
        price = job.prior.cost(job)
        working["class images"] = counter.drawing(price.at_once, sampler=price.sampler)
        working["class pictures"] = counter.decoding(price.at_once)
    return working


def while_training(
    job: Job, counter: Counter, residency: Residency, trainable: Mapping[str, Parameter]
) -> dict[Phase, int]:
    """Count what comes and goes in training and between its steps."""
    share = 2 if job.prior.has_rows() else 1
    rows = job.train.batch_size * share
    prompts = 0 if residency.keeps_texts else job.train.batch_size + share - 1
    working: dict[Phase, int] = {
        "training": counter.training(rows, prompts, trainable),
        "export": counter.forward(CHECK_ROWS),
    }
    if "texts" in residency.parts:  # which is known only now where a policy sees weights first
        working["texts"] = counter.texts()
    if not residency.keeps_latents:
        working["training"] = max(working["training"], counter.encoding(rows))
    price = job.prior.cost(job)
    if price.keeps_base and price.pictures:  # class images are drawn between steps
        drawing = counter.drawing(price.at_once, sampler=price.sampler)
        working["training"] = max(working["training"], drawing)
    trained = sum(p.numel() for p in trainable.values())
    if job.validation.every:
        rows = min(job.validation.batch_size, job.validation.rows * share)
        working["validation"] = counter.forward(rows, trained)
    if job.samples.every:
        working["drawing"] = max(
            count_drawing(job, counter, some, trained)
            for some in drawn_together(job, job.samples.entries)
        )
    return working


def count_drawing(job: Job, counter: Counter, some: Together, trained: int) -> int:
    """Count prompts that are drawn together, at their own size."""
    pictures = min(job.samples.batch_size, len(some.numbers) * job.samples.per_prompt)
    sampling = counter.drawing(pictures, trained, sampler=some.sampler, size=some.size)
    return max(sampling, counter.decoding(pictures, some.size))
