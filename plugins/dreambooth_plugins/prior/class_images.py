"""Sets of class latents: drawn ahead, or alongside training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dreambooth.files import write_json
from dreambooth.helpers.pictures import decode, save_picture, to_images
from dreambooth.helpers.random import derive
from dreambooth.interfaces import PriorRow, PriorSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.interfaces import Context, LoadedModel, NoiseSchedule, Sampler

SHOWN = 24
"""How many class images are decoded and written as pictures, for the eye."""


@dataclass(frozen=True)
class ClassSet:
    """Which class images there are to be (see `Generated`)."""

    prompt: str
    seed: int
    count: int
    batch_size: int
    reuse: int


class ClassImages(PriorSet):
    """What both forms share: the store entry, and how a chunk of it is drawn."""

    def __init__(
        self,
        wanted: ClassSet,
        ctx: Context,
        model: LoadedModel,
        sampler: Sampler,
        schedule: NoiseSchedule,
    ) -> None:
        self._wanted, self._ctx, self._sampler = wanted, ctx, sampler
        self._prompt = ctx.job.subject.fill(wanted.prompt)
        size = ctx.job.data.size
        self._solver = schedule.solver_config(size, sampler.sampling_steps())
        self._source = model
        self._epoch, self._order = -1, torch.empty(0)
        # What a class latent is; how many there are and how they are made is no part of it.
        key = {
            "prompt": self._prompt,
            "seed": wanted.seed,
            "size": list(size),
            "sampler": sampler.key(),
            "solver": self._solver,
            "model": {p: model.fingerprint(p) for p in model.info.parts},
        }
        self.latents = ctx.chunks("class-latents", key, wanted.batch_size, self._draw)
        self._pictures = ctx.chunks("class-pictures", key, wanted.batch_size, self._decode)

    def seed(self, index: int) -> int:
        """Return the recorded seed of picture `index`."""
        return derive(self._wanted.seed, "class-picture", index)

    @torch.no_grad()
    def _draw(self, indices: Sequence[int]) -> dict[str, Tensor]:
        seeds = [self.seed(i) for i in indices]
        latents = self._sampler.sample(
            self._source,
            [self._prompt] * len(indices),
            seeds=seeds,
            size=self._ctx.job.data.size,
            solver_config=self._solver,
            ctx=self._ctx,
        )
        return {"latents": latents.float(), "seed": torch.tensor(seeds, dtype=torch.int64)}

    @torch.no_grad()
    def _decode(self, indices: Sequence[int]) -> dict[str, Tensor]:
        latents = torch.stack([self.latents.row(i)["latents"] for i in indices])
        pixels = decode(self._source, latents.to(self._ctx.device))
        return {"pixels": pixels.add(1).mul(127.5).round().to(torch.uint8)}

    def prepare(self) -> None:
        """Draw what must be there before the first step: here, nothing."""

    def _show(self, count: int) -> None:
        """Write the first pictures and their seeds into the run's folder."""
        folder, shown = self._ctx.folder / "prior", min(count, SHOWN)
        if self._pictures.present(shown) < shown:  # the denoiser has drawn them all
            for part in self._source.info.part_names("denoiser"):
                self._source.release(part)
        self._pictures.ensure(shown, "Decoding class images")
        if not self._ctx.is_main:
            return
        for i in range(shown):
            pixels = self._pictures.row(i)["pixels"].float().div(127.5).sub(1)
            seed = self.seed(i)
            [image] = to_images(pixels[None])
            save_picture(folder / f"{i:03d}.png", image, {"prompt": self._prompt, "seed": seed})
        record = {
            "prompt": self._prompt,
            "store": self.latents.key,
            "seeds": [self.seed(i) for i in range(count)],
        }
        write_json(folder / "class-images.json", record)

    def entries(self) -> tuple[str, ...]:
        """Return the store entry of the latents."""
        return (self.latents.key,)

    def rows(self, indices: Sequence[int], step: int) -> list[PriorRow]:
        """Return one class row an instance row."""
        picked = [self.latents.row(self.pick(i))["latents"] for i in indices]
        return [PriorRow(prompt=self._prompt, latents=latents) for latents in picked]

    def pick(self, index: int) -> int:
        """Return the picture that goes with global sample `index`: here, the one of that number."""
        return index


class Ahead(ClassImages):
    """All class images exist before the first step; epochs over them are shuffled."""

    def prepare(self) -> None:
        """Draw what must be there before the first step."""
        self.latents.ensure(self._wanted.count, "Drawing class images")
        self._show(self._wanted.count)

    def pick(self, index: int) -> int:
        """Shuffle each epoch over the set in an order of its own."""
        epoch, place = divmod(index, self._wanted.count)
        if epoch != self._epoch:
            rng = self._ctx.random("class-order", epoch)
            self._epoch, self._order = epoch, torch.randperm(self._wanted.count, generator=rng)
        return int(self._order[place])


class Alongside(ClassImages):
    """Class images are drawn from a frozen copy of the base as training goes.

    Row i chooses among the newest `count` of the batch_size + i // reuse pictures that exist by
    then, rounded down to whole batches: a function of i, so a resumed run sees the same rows.
    """

    def prepare(self) -> None:
        """Draw what must be there before the first step."""
        self.latents.ensure(self._wanted.batch_size, "Drawing the first class images")
        self._show(self._wanted.batch_size)
        self._source = self._source.keep_base()

    def window(self, index: int) -> range:
        """Return the pictures row `index` chooses from."""
        size = self._wanted.batch_size
        newest = (size + index // self._wanted.reuse) // size * size
        return range(max(0, newest - self._wanted.count), newest)

    def pick(self, index: int) -> int:
        """Choose one of the window; a picture that is not there yet is drawn now."""
        window = self.window(index)
        self.latents.forget(window.start)
        rng = self._ctx.random("class-pick", index)
        return window[int(torch.randint(len(window), (1,), generator=rng))]
