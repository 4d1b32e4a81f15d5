"""Learn a word along with whole parts: full training under a word of the subject's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth.interfaces.model import NEW_ROWS
from dreambooth_plugins.freezing.components import Components
from dreambooth_plugins.freezing.word.policy import TOKEN, LearnsWord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth import Job, Problem
    from dreambooth.interfaces import Artifact, Context, LoadedModel, ModelInfo


class ComponentsAndToken(LearnsWord, Components):
    """Train every parameter of the named parts, and new token rows for the identifier.

    `token` is the rows' name in `lr`, `weight_decay`, `start` and `until`, beside those of the
    parts; a rate of about 5e-3 is usual for it, 5e-6 for the parts. The rows have no weight decay
    unless `weight_decay` says so. The result is a whole model that knows the word.
    """

    kind: Literal["components_and_token"] = "components_and_token"  # type: ignore[assignment]

    def unit(self, name: str) -> str:
        """Return `token` for the new rows, the part for the rest."""
        return TOKEN if name.endswith(NEW_ROWS) else super().unit(name)

    def decay_of(self, unit: str) -> float | None:
        """Return a unit's weight decay: none for the rows, which it would pull towards zero."""
        return self.weight_decay.get(unit, 0.0 if unit == TOKEN else None)

    def units(self, info: ModelInfo) -> frozenset[str]:
        """Return the named parts and `token`."""
        return super().units(info) | {TOKEN}

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find what keeps the word or the parts from learning."""
        yield from self.word_problems(job, info)
        yield from Components.check(self, job, info)

    def trained_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the named parts and the text encoders, whose tables get the rows."""
        return tuple(dict.fromkeys([*self.named_parts(info), *info.part_names("text_encoders")]))

    def prepare(self, model: LoadedModel, ctx: Context) -> None:
        """Copy the base where that is asked for, then add the rows."""
        super().prepare(model, ctx)
        self.add_word(model, ctx)

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return every parameter of the named parts, and the new rows."""
        whole = dict(model.named_parameters(*self.named_parts(model.info)))
        return {**whole, **self.word_rows(model)}

    def notes(self, model: LoadedModel, ctx: Context) -> list[str]:
        """Return what the word begins as."""
        rate = self.lr.get(TOKEN, ctx.job.optimizer.lr)
        return [*self.word_notes(model, ctx, rate), *super().notes(model, ctx)]

    def artifact(self, model: LoadedModel, weights: Mapping[str, Tensor]) -> Artifact:
        """Return the weights, with the names of the word's tokens."""
        from dreambooth.interfaces import Artifact

        return Artifact("weights", weights, self.word_facts(model))
