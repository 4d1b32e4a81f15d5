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
    "texts",
    "encoding",
    "class images",
    "class pictures",
    "training",
    "validation",
    "drawing",
    "export",
]
"""In their order: prompts are encoded, then images, class images drawn and some of them decoded to
be looked at; then training with validation and previews in between; then the export."""


LOOPING: tuple[Phase, ...] = ("training", "validation", "drawing")
BEFORE: tuple[Phase, ...] = ("texts", "encoding", "class images", "class pictures")
"""Before anything is made ready to train."""


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
    texts_first: bool
    """They are before anything else is in memory, since the policy says that no encoder trains."""
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
    said = frozenset(job.freezing.trained_parts(info))
    learning = said if trained is None else frozenset(trained)
    countable = all(job.data.variants(item) is not None for item in items)
    keeps_latents = job.train.cache and countable and not vae & learning
    keeps_texts = job.train.cache and not texts & learning
    cost = job.prior.cost(job)

    def when(wanted: bool, parts: frozenset[str]) -> frozenset[str]:
        return parts if wanted else frozenset()

    first = keeps_texts and not texts & said
    loop = denoiser | learning | when(not keeps_latents, vae) | when(not keeps_texts, texts)
    parts: dict[Phase, frozenset[str]] = {
        # One after the other, where the family can. A policy that has to see the weights before it
        # knows what trains brings its parts along.
        "texts": texts | when(keeps_texts and not first, denoiser | learning),
        "encoding": vae,
        "class images": denoiser,
        "class pictures": vae,
        "training": loop,
        "validation": loop,
        "drawing": loop | vae,
        # Files are compared with the whole model.
        "export": denoiser | learning | texts,
    }
    absent: dict[Phase, bool] = {
        "texts": not (keeps_texts or cost.pictures),
        "encoding": not keeps_latents,
        "class images": not cost.pictures,
        "class pictures": not cost.pictures,
        "validation": not job.validation.every,
        "drawing": not job.samples.every,
    }
    copied = when(cost.keeps_base or job.freezing.keeps_base(), denoiser)
    copied |= when(bool(copied) and not keeps_texts, texts)
    copies: dict[Phase, frozenset[str]] = dict.fromkeys(LOOPING, copied)
    copies["texts"] = when(keeps_texts and not first, copied)
    return Residency(
        {phase: held for phase, held in parts.items() if not absent.get(phase)},
        {phase: held for phase, held in copies.items() if not absent.get(phase)},
        keeps_latents,
        keeps_texts,
        first,
        vae,
    )
