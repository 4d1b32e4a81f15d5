"""How a model's tokenizer splits text, told without torch: for choosing identifiers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from dreambooth.component.door import Called

if TYPE_CHECKING:
    from collections.abc import Mapping


class Vocabulary(Called, ABC):
    """The tokens of a model's (first) text encoder."""

    @abstractmethod
    def split(self, text: str) -> list[str]:
        """Return the tokens of a text, each as it reads in the text, without start and end."""

    @abstractmethod
    def words(self) -> Mapping[str, float]:
        """Return words that have an entry of their own, with how rare each is: 0 to 1, the rarest.

        Of byte-pair vocabularies: the place of the word's merge, as merges are learned in order
        of frequency. `split` has the last word on what a word becomes.
        """

    @abstractmethod
    def has(self, token: str) -> bool:
        """Say whether a token of that name is taken, so that no new one can have it."""
