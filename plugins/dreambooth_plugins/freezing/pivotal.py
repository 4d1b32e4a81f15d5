"""Learn a word and an adapter: pivotal tuning."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from dreambooth.interfaces.model import NEW_ROWS
from dreambooth_plugins.freezing.adapter.policy import Adapter
from dreambooth_plugins.freezing.word.policy import TOKEN, LearnsWord, base_reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth import Job, Problem
    from dreambooth.interfaces import Artifact, Context, LoadedModel, ModelInfo


class Pivotal(LearnsWord, Adapter):
    """Train new token rows for the identifier and an adapter (pivotal tuning, arXiv:2106.05744).

    `token` is the rows' name in `lr`, `weight_decay`, `start` and `until`, beside those of the
    parts. Both train together; `until: {token: 0.5}` with `start: {unet: 0.5}` trains one after
    the other. Rates of about 5e-3 for the token and 1e-4 for the adapter are usual; the rows
    have no weight decay unless `weight_decay` says so.
    """

    kind: Literal["pivotal"] = "pivotal"  # type: ignore[assignment]

    def unit(self, name: str) -> str:
        """Return `token` for the new rows, the part for the rest."""
        return TOKEN if name.endswith(NEW_ROWS) else super().unit(name)

    def decay_of(self, unit: str) -> float | None:
        """Return a unit's weight decay: none for the rows, which it would pull towards zero."""
        return self.weight_decay.get(unit, 0.0 if unit == TOKEN else None)

    def units(self, info: ModelInfo) -> frozenset[str]:
        """Return the adapted parts and `token`."""
        return super().units(info) | {TOKEN}

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find what keeps the word or the adapter from learning."""
        yield from self.word_problems(job, info)
        yield from Adapter.check(self, job, info)

    def trained_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the adapted parts and the text encoders, whose tables get the rows."""
        return tuple(dict.fromkeys([*self.named_parts(info), *info.part_names("text_encoders")]))

    def prepare(self, model: LoadedModel, ctx: Context) -> None:
        """Add the rows, then the adapters."""
        self.add_word(model, ctx)
        super().prepare(model, ctx)

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return the new rows and the parameters of the adapters."""
        return {**self.word_rows(model), **super().trainable(model)}

    def notes(self, model: LoadedModel, ctx: Context) -> list[str]:
        """Return what the word begins as, then what there is to say of the adapters."""
        rate = self.lr.get(TOKEN, ctx.job.optimizer.lr)
        return [*self.word_notes(model, ctx, rate), *super().notes(model, ctx)]

    @contextmanager
    def showing_base(self, model: LoadedModel) -> Iterator[None]:
        """Show the base: adapters off, the identifier read as the text it is."""
        with super().showing_base(model), base_reading(model):
            yield

    def artifact(self, model: LoadedModel, weights: Mapping[str, Tensor]) -> Artifact:
        """Return adapters and rows: an `adapter` whose metadata has `tokens` as well."""
        from dataclasses import replace

        made = super().artifact(model, weights)
        return replace(made, metadata={**made.metadata, **self.word_facts(model)})

    def at(self, folder: Path) -> Pivotal | None:
        """Return this policy beginning with what was written into `folder`; None without a word."""
        found, adapter = self.with_file(folder), super().at(folder)
        return self.model_copy(update={**found, "init": folder}) if found and adapter else None
