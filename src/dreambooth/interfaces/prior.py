"""The prior slot: class images and what their rows are trained towards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dreambooth.component import Component
from dreambooth.component.door import Called

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.component import AnyJob
    from dreambooth.interfaces.context import Context
    from dreambooth.interfaces.data import Subject
    from dreambooth.interfaces.model import LoadedModel
    from dreambooth.interfaces.sampler import Sampler
    from dreambooth.interfaces.scheduler import NoiseSchedule


@dataclass(frozen=True)
class PriorRow:
    """One class row of a batch."""

    prompt: str
    latents: Tensor | None
    """[C, h, w], a point in the denoiser's space; None: the latents, noise and timestep of the
    instance row this row belongs to (a mirrored row)."""
    target: Literal["noise", "reference"] = "noise"
    """Train towards the drawn noise, or towards the frozen base's own prediction."""
    reference_prompt: str | None = None
    """Prompt of the reference pass where it differs."""


@dataclass(frozen=True)
class PriorCost:
    """What a prior costs before the first step, for the plan."""

    pictures: int
    """Class images that have to be made, none of them cached."""
    forwards: int
    """Denoiser forwards (rows) for that."""
    note: str = ""
    keeps_base: bool = False
    """A frozen copy of denoiser and text encoders stays in memory while training."""
    at_once: int = 1
    """Pictures drawn together, which decides the memory."""
    sampler: Sampler | None = None
    """What draws them, where it is not the job's sampler."""


class PriorSet(Called, ABC):
    """An opened prior."""

    @abstractmethod
    def rows(self, indices: Sequence[int], step: int) -> list[PriorRow]:
        """Return the class rows that go with the instance rows of these global sample indices.

        Must be a function of (seed, index, step) alone, so that a resumed run sees the same rows.
        """

    def entries(self) -> tuple[str, ...]:
        """Return the keys of the store entries in use, for the manifest."""
        return ()


class NoPrior(PriorSet):
    """No class rows."""

    def rows(self, indices: Sequence[int], step: int) -> list[PriorRow]:
        """Return no rows."""
        return []


class Prior(Component):
    """How the class is kept. Hook: `register_priors`."""

    def open(
        self, ctx: Context, model: LoadedModel, sampler: Sampler, schedule: NoiseSchedule
    ) -> PriorSet:
        """Generate, read or skip class images. Called while `model` is still the frozen base."""
        raise NotImplementedError  # abstract

    def prompts(self, subject: Subject) -> list[str]:
        """Return every class prompt that rows may carry, for the text cache."""
        return []

    def has_rows(self) -> bool:
        """Say whether there will be class rows at all."""
        return True

    def needs_base(self) -> bool:
        """Say whether rows are trained towards the base's prediction (`target="reference"`)."""
        return False

    def cost(self, job: AnyJob) -> PriorCost:
        """Price the prior for the plan, without torch, as if nothing were cached."""
        return PriorCost(0, 0)

    def cached(
        self, ctx: Context, model: LoadedModel, sampler: Sampler, schedule: NoiseSchedule
    ) -> int:
        """Return how many of the pictures that `cost` counts are in the store already."""
        return 0
