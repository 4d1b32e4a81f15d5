"""The data slot: where instance images, captions and augmentation come from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dreambooth.component import Component, Section

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from dreambooth.component.tensors import RowGeometry
    from dreambooth.interfaces.context import Context

Side = Annotated[int, Field(ge=8, le=8192)]

AUTO = "auto"
"""What a job says to have its identifier chosen."""
PLACEHOLDERS = ("identifier", "class_noun")


def unknown_placeholders(template: str) -> list[str]:
    """Return the `{...}` of a prompt template that nothing fills in (spaces inside included)."""
    return [name for name in re.findall(r"\{([^{}]*)\}", template) if name not in PLACEHOLDERS]


class Subject(Section):
    """What is being learned."""

    identifier: str = Field(min_length=1)
    """Rare word that will name the subject, e.g. `ohwx` (`dbt identifier` proposes some that are
    one token to the model). `auto` takes one of these: a function of the model's tokenizer and
    `train.seed`, written out in the run's job.yaml."""
    class_noun: str = Field(min_length=1)
    """Plain noun of the class the subject belongs to, e.g. `dog`. The right noun matters most."""

    def fill(self, template: str) -> str:
        """Fill `{identifier}` and `{class_noun}` into a prompt template."""
        return template.replace("{identifier}", self.identifier).replace(
            "{class_noun}", self.class_noun
        )


def without_identifier(prompt: str, subject: Subject) -> str:
    """Take the identifier out of a filled prompt, whole words alone, and the gap it leaves."""
    word = re.escape(subject.identifier)
    return " ".join(re.sub(rf"(?<!\w){word}(?!\w)", "", prompt, flags=re.IGNORECASE).split())


@dataclass(frozen=True)
class Item:
    """One usable instance image."""

    id: str
    """Stable name, e.g. the path relative to the data folder."""
    path: Path | None
    sha256: str
    """Hash of the image file's bytes."""
    size: tuple[int, int]
    """(height, width) as seen (EXIF orientation applied)."""
    caption: str | None = None
    mask: Path | None = None
    """A file of its own that says where the subject is; None too where the image says it itself."""
    subject: int = 0
    mask_sha256: str | None = None
    """Hash of the mask file's bytes."""


@dataclass(frozen=True)
class Rejected:
    """A file that is not used, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What a data source found, sorted by id."""

    items: tuple[Item, ...]
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image made ready for the model."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    """[height, width, 3], uint8 RGB, of exactly the source's `size`."""
    geometry: RowGeometry
    mask: np.ndarray[Any, np.dtype[np.float32]] | None = None
    """[height, width] in 0..1, where the subject is; None without masks."""


class DataSource(Component):
    """A source of instance images. Hook: `register_data_sources`."""

    prompt: str = "a photo of {identifier} {class_noun}"
    """Prompt of an image without a caption; `{identifier}` and `{class_noun}` are filled in."""
    resolution: Side | tuple[Side, Side] = 512
    """Side of the training images in pixels, or [height, width]."""
    caption_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of rows trained with the empty prompt, which keeps guidance working in long runs."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a training image in pixels."""
        r = self.resolution
        return (r, r) if isinstance(r, int) else r

    def scan(self, ctx: Context) -> Scan:
        """List the usable images and the rejected files, without torch; `UserError` if none."""
        raise NotImplementedError  # abstract

    def variants(self, item: Item) -> int | None:
        """Return how many distinct augmentations an item has (1: none); None: not countable.

        Countable ones are cached one by one; where a source says None, latents are encoded
        anew each step.
        """
        return 1

    def load(self, item: Item, variant: int | None, rng: np.random.Generator) -> Sample:
        """Read one image and apply augmentation number `variant`, or one drawn from `rng`.

        With a `variant` the result must not depend on `rng`. Number 0 is the image as it is, also
        where augmentations are not countable: validation and metrics look at that one.
        """
        raise NotImplementedError  # abstract

    def pixels_key(self) -> dict[str, Any]:
        """Return every option that changes pixels: part of the latent cache's key."""
        return self.key()

    def item_prompt(self, item: Item, subject: Subject) -> str:
        """Return the prompt an item trains with."""
        return subject.fill(item.caption if item.caption is not None else self.prompt)

    def row_prompt(self, item: Item, subject: Subject, rng: np.random.Generator) -> str:
        """Return the prompt of one training row: `item_prompt`, or empty at `caption_dropout`."""
        if self.caption_dropout and rng.random() < self.caption_dropout:
            return ""
        return self.item_prompt(item, subject)

    def prompts(self, items: Sequence[Item], subject: Subject) -> list[str]:
        """Return every distinct prompt training can meet, for the text cache."""
        found = dict.fromkeys(self.item_prompt(item, subject) for item in items)
        return [*found, *([""] if self.caption_dropout and "" not in found else [])]
