"""Class images drawn from the frozen base model (DreamBooth's prior preservation)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from dreambooth import Problem
from dreambooth.interfaces import Prior, PriorCost, Sampler
from dreambooth.plugins import Slot
from dreambooth_plugins.prior.class_prompt import CLASS_PROMPT, ClassPrompt, class_prompt_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dreambooth import Job
    from dreambooth.interfaces import (
        Context,
        LoadedModel,
        ModelInfo,
        NoiseSchedule,
        PriorSet,
        Subject,
    )
    from dreambooth_plugins.prior.class_images import ClassSet


class Generated(Prior):
    """Class images sampled from the base, kept as latents.

    The set lies in the store shared by all jobs, keyed by prompt, model, size, seed, sampler and
    noise schedule: a second run reuses it, a changed one makes its own, an interrupted one is
    completed. Method: Ruiz et al. 2023, section 3.3.
    """

    kind: Literal["generated"] = "generated"
    prompt: ClassPrompt = CLASS_PROMPT
    """Prompt the class images are drawn from and trained with; `{class_noun}` is filled in."""
    count: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Class images; with `when: alongside`, how many of the newest a step chooses from."""
    when: Literal["ahead", "alongside"] = "ahead"
    """Draw all before the first step, or fresh ones while training goes on (a frozen copy of the
    denoiser and the text encoders then stays in memory)."""
    reuse: Annotated[int, Field(ge=1)] = 4
    """With `when: alongside`: class rows trained for each new picture."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 10
    """Pictures drawn at once; the last batch is drawn whole. A set that was begun otherwise is
    finished as it was begun."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the set; apart from train.seed, so that jobs with other seeds share it."""
    sampler: Annotated[Sampler, Slot("sampler")] | None = None
    """What draws the set; null takes the job's own sampler. With one of its own, another preview
    sampler draws no class image anew."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Refuse class prompts that carry the identifier or an unknown placeholder."""
        yield from class_prompt_problems(self.prompt, job)
        if self.when == "alongside" and self.count < self.batch_size:
            yield Problem(
                ("prior", "count"),
                f"a buffer of {self.count} pictures is smaller than a batch of {self.batch_size}",
                "raise prior.count or lower prior.batch_size",
            )

    def settled(self, describe: Callable[[], ModelInfo]) -> Self:
        """Return this prior with what its sampler leaves to the model written out."""
        if self.sampler is None or (found := self.sampler.settled(describe)) is self.sampler:
            return self
        return self.model_copy(update={"sampler": found})

    def open(
        self, ctx: Context, model: LoadedModel, sampler: Sampler, schedule: NoiseSchedule
    ) -> PriorSet:
        """Generate what is missing of the set, or prepare to do so while training goes on."""
        from dreambooth_plugins.prior.class_images import Ahead, Alongside

        kind = Ahead if self.when == "ahead" else Alongside
        images = kind(self._set(), ctx, model, self.sampler or sampler, schedule)
        images.prepare()
        return images

    def cached(
        self, ctx: Context, model: LoadedModel, sampler: Sampler, schedule: NoiseSchedule
    ) -> int:
        """Look the set up in the store."""
        from dreambooth_plugins.prior.class_images import ClassImages

        drawn_by = self.sampler or sampler
        latents = ClassImages(self._set(), ctx, model, drawn_by, schedule).latents
        wanted = self.pictures(ctx.job)
        if self.when == "ahead" and latents.present(self.count) == self.count:
            return wanted  # a set that was drawn in other batches may end elsewhere
        return latents.present(wanted)

    def _set(self) -> ClassSet:
        from dreambooth_plugins.prior.class_images import ClassSet

        return ClassSet(self.prompt, self.seed, self.count, self.batch_size, self.reuse)

    def prompts(self, subject: Subject) -> list[str]:
        """Return the class prompt."""
        return [subject.fill(self.prompt)]

    def pictures(self, job: Job) -> int:
        """Return how many pictures a whole run draws, none of them cached."""
        if self.when == "ahead":
            wanted = self.count
        else:
            rows = job.train.steps * job.train.batch_size * job.train.accumulation
            wanted = self.batch_size + (rows - 1) // self.reuse
        return -(-wanted // self.batch_size) * self.batch_size

    def cost(self, job: Job) -> PriorCost:
        """Price the set in denoiser forwards."""
        pictures = self.pictures(job)
        schedule = job.scheduler.open(job.model.describe())
        sampler = self.sampler or job.sampler
        solver = schedule.solver_config(job.data.size, sampler.sampling_steps())
        alongside = self.when == "alongside"
        note = "a frozen copy of the base stays in memory" if alongside else ""
        forwards = round(pictures * sampler.forwards(solver))
        return PriorCost(pictures, forwards, note, alongside, self.batch_size, self.sampler)
