"""Learn a word alone: textual inversion."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dreambooth.interfaces import ParameterGroup
from dreambooth.interfaces.freezing import ArtifactKind
from dreambooth_plugins.freezing.word.policy import LearnsWord, base_reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth import Job, Problem
    from dreambooth.interfaces import Artifact, Context, LoadedModel, ModelInfo


class Token(LearnsWord):
    """Train new token rows for the identifier and nothing else (textual inversion,
    arXiv:2208.01618).

    The model stays as it is to the bit, every other row of its embedding table included; the
    result is a file of a few kilobytes. Wants a learning rate of about 5e-3 and more steps than
    full training (3,000 are usual).
    """

    kind: Literal["token"] = "token"
    artifacts: ClassVar[frozenset[ArtifactKind]] = frozenset({"embedding"})
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Weight decay of the rows, in place of the optimizer's: it would pull them towards zero."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find an identifier or a model that cannot learn."""
        yield from self.word_problems(job, info)

    def trained_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the text encoders."""
        return info.part_names("text_encoders")

    def prepare(self, model: LoadedModel, ctx: Context) -> None:
        """Add the rows."""
        self.add_word(model, ctx)

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return the new rows."""
        return self.word_rows(model)

    def groups(self, names: Sequence[str]) -> list[ParameterGroup]:
        """Return one group, with the policy's own decay."""
        return [ParameterGroup(tuple(names), weight_decay=self.weight_decay)]

    def notes(self, model: LoadedModel, ctx: Context) -> list[str]:
        """Return what the word begins as."""
        return self.word_notes(model, ctx, ctx.job.optimizer.lr)

    def showing_base(self, model: LoadedModel) -> AbstractContextManager[None]:
        """Show the base, which reads the identifier as the text it is."""
        return base_reading(model)

    def artifact(self, model: LoadedModel, weights: Mapping[str, Tensor]) -> Artifact:
        """Return the rows and the names of their tokens."""
        from dreambooth.interfaces import Artifact

        return Artifact("embedding", weights, self.word_facts(model))

    def at(self, folder: Path) -> Token | None:
        """Return this policy beginning with the embedding in `folder`; None without one."""
        found = self.with_file(folder)
        return self.model_copy(update=dict(found)) if found else None
