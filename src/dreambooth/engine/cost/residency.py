"""Which part of the model is in memory in which phase of a run: one truth for session and plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dreambooth.interfaces import Item, LoadedModel, ModelInfo
    from dreambooth.job import Job

Phase = Literal[
    "encoding",
    "class images",
    "class pictures",
    "texts",
    "training",
    "validation",
    "drawing",
    "export",
]
"""In their order: images are encoded, class images drawn and some of them decoded to be looked at,
prompts encoded; then training with validation and previews in between; then the export."""


@dataclass(frozen=True)
class Residency:
    """The table: by phase, the parts that are in memory.

    A phase that the run does not have is not in it. Parts load when a phase first asks for them.
    """

    parts: Mapping[Phase, frozenset[str]]
    copies: Mapping[Phase, frozenset[str]]
    """Parts of the frozen copy of the base, where the run keeps one."""
    keeps_latents: bool
    """Images are encoded once; else anew each step."""
    keeps_texts: bool
    """Prompts are encoded once; else anew each step."""
    full: frozenset[str]
    """Parts that are float32 whatever the run's precision. Of the others what trains is float32,
    from `training` on, and the rest in the run's type."""

    def dtype(self, part: str, run: torch.dtype) -> torch.dtype:
        """Return the type of a part's frozen weights in a run whose compute type is `run`."""
        return torch.float32 if part in self.full else run

    def enter(self, phase: Phase, model: LoadedModel) -> None:
        """Let the parts leave memory that do not belong there from now on."""
        for one, table in ((model, self.parts), (model.base, self.copies)):
            allowed = table.get(phase, frozenset())
            for part in one.loaded() if one is not None else ():
                if part not in allowed:
                    assert one is not None
                    one.release(part)


def residency_of(
    job: Job, info: ModelInfo, items: Sequence[Item], trained: Iterable[str] | None = None
) -> Residency:
    """Make the table of a run over `items`.

    `trained` names the parts in which something trains; before the policy has seen the weights
    its own word is taken for it.
    """
    denoiser, texts, vae = (
        frozenset(info.part_names(role)) for role in ("denoiser", "text_encoders", "vae")
    )
    learning = frozenset(job.freezing.trained_parts(info) if trained is None else trained)
    countable = all(job.data.variants(item) is not None for item in items)
    keeps_latents = job.train.cache and countable and not vae & learning
    keeps_texts = job.train.cache and not texts & learning
    cost = job.prior.cost(job)

    def when(wanted: bool, parts: frozenset[str]) -> frozenset[str]:
        return parts if wanted else frozenset()

    stays = when(bool(job.samples.every) or not keeps_latents, vae)
    loop = denoiser | learning | stays | when(not keeps_texts, texts)
    parts: dict[Phase, frozenset[str]] = {
        "encoding": vae,
        "class images": denoiser | texts,
        "class pictures": denoiser | texts | vae,
        "texts": denoiser | learning | texts | stays,
        "training": loop,
        "validation": loop,
        "drawing": loop,
        # Files are compared with the whole model.
        "export": denoiser | learning | texts | stays,
    }
    absent: dict[Phase, bool] = {
        "encoding": not keeps_latents,
        "class images": not cost.pictures,
        "class pictures": not cost.pictures,
        "validation": not job.validation.every,
        "drawing": not job.samples.every,
    }
    copied = when(cost.keeps_base or job.freezing.keeps_base(), denoiser)
    copied |= when(bool(copied) and not keeps_texts, texts)
    looping: tuple[Phase, ...] = ("training", "validation", "drawing")
    copies = {phase: copied for phase in looping} | {"texts": copied | when(bool(copied), texts)}
    return Residency(
        {phase: held for phase, held in parts.items() if not absent.get(phase)},
        {phase: held for phase, held in copies.items() if not absent.get(phase)},
        keeps_latents,
        keeps_texts,
        vae,
    )
