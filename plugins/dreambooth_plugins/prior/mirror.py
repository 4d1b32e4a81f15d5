"""Each instance row again, with the class prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth.interfaces import Prior, PriorCost, PriorRow, PriorSet
from dreambooth_plugins.prior.class_prompt import CLASS_PROMPT, ClassPrompt, class_prompt_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreambooth import Job, Problem
    from dreambooth.interfaces import (
        Context,
        LoadedModel,
        ModelInfo,
        NoiseSchedule,
        Sampler,
        Subject,
    )


class MirroredRows(PriorSet):
    """One class row an instance row: its latents, noise and timestep, under the class prompt."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt

    def rows(self, indices: Sequence[int], step: int) -> list[PriorRow]:
        """Return rows whose target is the frozen base's prediction."""
        return [PriorRow(self._prompt, latents=None, target="reference") for _ in indices]


class Mirror(Prior):
    """Hold the class prompt to what the base predicts at each instance row's noisy latents.

    No class images: nothing is drawn ahead, nothing is stored. Each step makes one more forward
    of the class rows, by the base: the same weights with the adapter switched off, or a frozen
    copy (`freezing: {kind: components, reference: frozen_copy}`).
    """

    kind: Literal["mirror"] = "mirror"
    prompt: ClassPrompt = CLASS_PROMPT
    """Prompt that should go on meaning what it means to the base; `{class_noun}` is filled in."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Refuse class prompts that carry the identifier or an unknown placeholder."""
        return class_prompt_problems(self.prompt, job)

    def open(
        self, ctx: Context, model: LoadedModel, sampler: Sampler, schedule: NoiseSchedule
    ) -> PriorSet:
        """Return the mirrored rows; there is nothing to make."""
        return MirroredRows(ctx.job.subject.fill(self.prompt))

    def prompts(self, subject: Subject) -> list[str]:
        """Return the class prompt."""
        return [subject.fill(self.prompt)]

    def needs_base(self) -> bool:
        """The base's prediction is the target."""
        return True

    def cost(self, job: Job) -> PriorCost:
        """Nothing is drawn."""
        return PriorCost(0, 0, "each picture stands for its class: rows are held to the base")
