"""A word of its own for the subject: what the policies that learn one have in common."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dreambooth import FreezingPolicy, Problem
from dreambooth.component import JobPath
from dreambooth.errors import JobError
from dreambooth.interfaces import AUTO, NEW_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch.nn import Parameter

    from dreambooth import Job
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo

TOKEN = "token"
"""What the options of a policy that trains more call the rows."""
LOW_RATE = 1e-4
"""A learning rate below which a token hardly learns."""


class LearnsWord(FreezingPolicy):
    """A policy that gives the subject's identifier token rows of its own."""

    vectors: Annotated[int, Field(ge=1, le=64)] = 1
    """Token rows the identifier gets. One is usual; more hold more and take as many tokens of
    each prompt."""
    words: Annotated[str, Field(min_length=1)] | None = None
    """Words whose rows they begin as, such as `brown dog`; null takes the class noun."""
    embedding: JobPath | None = None
    """Learned rows to go on training: a textual inversion file (.safetensors, as diffusers and
    A1111 write it) or a folder with `learned_embeds.safetensors`. Takes the place of `words`."""

    def learns_word(self) -> bool:
        """The identifier gets tokens of its own."""
        return True

    def word_problems(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find an identifier that cannot get tokens, and a file that is no embedding."""
        if info is not None and not info.learns_words:
            yield Problem(
                ("freezing", "kind"),
                info.no_words or "this model has no text encoder that could learn a word",
                "use another freezing policy",
            )
        if self.embedding is not None:
            yield from self._file_problems(self.embedding, info)
        name = job.subject.identifier
        at, free = ("subject", "identifier"), _free(name)
        if name == AUTO:
            return
        if name.split() != [name] or name != name.lower():
            yield Problem(at, f'"{name}" cannot be one token', f"write it as {free}")
            return
        vocabulary = job.model.vocabulary() if info is not None else None
        if vocabulary is not None and vocabulary.has(name):
            yield Problem(
                at,
                f'"{name}" is a token of this model already: it cannot get a row of its own',
                f"take a name that means nothing yet, such as {free}, or identifier: auto",
            )

    def _file_problems(self, path: Path, info: ModelInfo | None) -> Iterator[Problem]:
        from dreambooth_plugins.formats.embedding import read_shape

        at = ("freezing", "embedding")
        try:
            count, _ = read_shape(path, tuple(info.learns_words.values()) if info else ("",))
        except JobError as error:
            yield Problem(at, error.message, error.hint)
            return
        if count != self.vectors:
            yield Problem(
                ("freezing", "vectors"),
                f"{path.name} has {count} rows, and {self.vectors} are to be trained",
                f"set freezing.vectors: {count}",
            )

    def add_word(self, model: LoadedModel, ctx: Context) -> None:
        """Give the identifier its rows: those of the words, or of the file."""
        subject = ctx.job.subject
        rows = model.add_tokens(subject.identifier, self.vectors, self.words or subject.class_noun)
        if self.embedding is not None:
            from dreambooth_plugins.formats.embedding import read_rows

            read_rows(self.embedding, rows, model.info.learns_words)

    def word_rows(self, model: LoadedModel) -> dict[str, Parameter]:
        """Return the new rows by qualified name, one entry a text encoder."""
        return {n: p for n, p in model.named_parameters("text_encoders") if n.endswith(NEW_ROWS)}

    def word_facts(self, model: LoadedModel) -> dict[str, Any]:
        """Return what an artifact says of the word: `tokens`, word -> names of its tokens.

        Their rows are the artifact's tensors whose name ends in `NEW_ROWS`, in this order.
        """
        return {"tokens": {word: list(names) for word, names in model.words.items()}}

    def word_notes(self, model: LoadedModel, ctx: Context, rate: float) -> list[str]:
        """Return what the word begins as, and a rate that is too low."""
        begins = self.embedding.name if self.embedding else self.words or ctx.job.subject.class_noun
        rows = "1 token row" if self.vectors == 1 else f"{self.vectors} token rows"
        line = f'{ctx.job.subject.identifier}: {rows}, beginning as "{begins}"'
        low = f"token rows want a learning rate of about 5e-3, and have {rate:g}"
        return [line, low] if rate < LOW_RATE else [line]

    def with_file(self, folder: Path) -> Mapping[str, Path]:
        """Return the options that begin with the embedding of a folder, where it has one."""
        from dreambooth_plugins.formats.embedding import EMBEDDING_FILE

        return {"embedding": folder} if (folder / EMBEDDING_FILE).is_file() else {}


def _free(name: str) -> str:
    """Return a name like this one that is likely to be free: `<my-dog>`."""
    plain = "-".join(name.lower().strip("<>").split())
    return f"<my-{plain}>" if name == f"<{plain}>" else f"<{plain}>"


@contextmanager
def base_reading(model: LoadedModel) -> Iterator[None]:
    """Read and encode prompts as the base does for the block; kept embeddings are put aside."""
    kept = (model.embeddings, model.text_is_frozen)
    model.embeddings, model.text_is_frozen = {}, False
    try:
        with model.without_tokens():
            yield
    finally:
        model.embeddings, model.text_is_frozen = kept
