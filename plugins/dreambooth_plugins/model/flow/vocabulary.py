"""How a language model's tokenizer splits text, without torch or transformers."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.files import MAX_JSON
from dreambooth.interfaces import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MARKS = ("Ġ", "▁")
"""What stands for the space before a word in byte pairs and in sentence pieces."""


class TokenizerVocabulary(Vocabulary):
    """A tokenizer.json: words are split as they are within a prompt, behind a space."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ids = tokenizer, tokenizer.get_vocab()

    def split(self, text: str) -> list[str]:
        """Return the tokens of a text as they read in it, the spaces before them left out."""
        tokens = self._tokenizer.encode(f" {text}", add_special_tokens=False).tokens
        return [plain for token in tokens if (plain := _plain(token))]

    def words(self) -> Mapping[str, float]:
        """Return words of ASCII letters that have a token of their own, with their rarity."""
        last = max(self._ids.values(), default=0) or 1
        return {
            word: number / last
            for token, number in self._ids.items()
            if token.startswith(MARKS) and (word := token[1:]).isascii() and word.isalpha()
        }

    def has(self, token: str) -> bool:
        """Say whether a token of that name is there, alone or behind a space."""
        return any(f"{mark}{token}" in self._ids for mark in ("", *MARKS))


def _plain(token: str) -> str:
    return token[1:] if token.startswith(MARKS) else token


def read_vocabulary(folder: Path) -> TokenizerVocabulary | None:
    """Read a folder's tokenizer.json, once while it stays as it is; None where there is none.

    `JobError` where it cannot be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file() or file.stat().st_size > MAX_JSON:
        return None
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(file: Path, stamp: int) -> TokenizerVocabulary:
    from tokenizers import Tokenizer

    try:
        return TokenizerVocabulary(Tokenizer.from_file(str(file)))
    except Exception as error:  # the library raises its own, of no common class
        raise JobError(
            f"{file} holds no tokenizer that can be read ({str(error).splitlines()[0]})",
            "copy or download the folder again",
        ) from error
