"""CLIP's byte-pair tokenizer without torch or transformers: for questions about single words."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.interfaces import Vocabulary
from dreambooth_plugins.model.clip_vocabulary import byte_alphabet, byte_order, clip_vocabulary
from dreambooth_plugins.model.source import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

WORD_END = "</w>"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


class ClipVocabulary(Vocabulary):
    """Splits as `CLIPTokenizer` does: lower case, words and single digits, then byte pairs."""

    def __init__(
        self, ids: Mapping[str, int], merges: Iterable[tuple[str, str]], added: Iterable[str] = ()
    ) -> None:
        """Take token -> id, the merges in order, and tokens that were added later."""
        self._ids = ids
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        special = {*_SPECIAL, *added}
        self._added = sorted(special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._added)))
        self._bytes = dict(zip(byte_order(), byte_alphabet(), strict=True))
        self._letters = {stand_in: byte for byte, stand_in in self._bytes.items()}

    def split(self, text: str) -> list[str]:
        """Return the tokens of a text as they read in it."""
        text = " ".join(unicodedata.normalize("NFC", text).lower().split())
        tokens: list[str] = []
        start = 0
        for match in self._pattern.finditer(text):
            tokens += self._split_plain(text[start : match.start()])
            tokens.append(match.group())
            start = match.end()
        return tokens + self._split_plain(text[start:])

    def _split_plain(self, text: str) -> list[str]:
        return [piece for word in _words(text) for piece in self._pieces(word)]

    def _pieces(self, word: str) -> list[str]:
        units = [self._bytes[byte] for byte in word.encode()]
        units[-1] += WORD_END
        while len(units) > 1:
            pairs = list(pairwise(units))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            units = _merged(units, best)
        return [self._readable(unit) for unit in units]

    def _readable(self, unit: str) -> str:
        raw = bytes(self._letters[c] for c in unit.removesuffix(WORD_END))
        return raw.decode(errors="replace")

    def words(self) -> Mapping[str, float]:
        """Return words of ASCII letters that have a token of their own, with their rarity."""
        last = max(self._ids.values(), default=0) or 1
        return {
            word: number / last
            for token, number in self._ids.items()
            if token.endswith(WORD_END)
            and (word := token.removesuffix(WORD_END)).isascii()
            and word.isalpha()
        }

    def has(self, token: str) -> bool:
        """Say whether a token of that name is there, at the end of words or inside."""
        return token in self._ids or f"{token}{WORD_END}" in self._ids or token in self._added


def _merged(units: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for unit in units:
        if out and (out[-1], unit) == pair:
            out[-1] += unit
        else:
            out.append(unit)
    return out


def _words(text: str) -> Iterator[str]:
    """Cut text as CLIP's pattern does: contractions, runs of letters, digits, runs of the rest."""
    i = 0
    while i < len(text):
        word = next((c for c in _CONTRACTIONS if text.startswith(c, i)), "")
        kind = _kind(text[i])
        if not word and kind != " ":
            end = i + 1
            while kind != "N" and end < len(text) and _kind(text[end]) == kind:
                end += 1
            word = text[i:end]
        if word:
            yield word
        i += len(word) or 1


def _kind(char: str) -> str:
    if char.isspace():
        return " "
    category = unicodedata.category(char)[0]
    return category if category in "LN" else "?"


def read_vocabulary(folder: Path) -> ClipVocabulary:
    """Read a tokenizer folder (`vocab.json` and `merges.txt`, else `tokenizer.json`).

    `JobError` where it has neither.
    """
    whole = folder / "tokenizer.json"
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        ids: Mapping[str, int] = read_json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
        more = folder / "added_tokens.json"
        return ClipVocabulary(ids, merges, read_json(more) if more.is_file() else ())
    if whole.is_file():
        data = read_json(whole)
        added = [token["content"] for token in data.get("added_tokens", ())]
        return ClipVocabulary(data["model"]["vocab"], map(_pair, data["model"]["merges"]), added)
    raise JobError(
        f"{folder} holds no vocabulary (tokenizer.json, or vocab.json and merges.txt)",
        "the model folder is incomplete: copy or download it again",
    )


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split() if isinstance(merge, str) else merge
    return left, right


def shipped_vocabulary(merges: int | None = None) -> ClipVocabulary:
    """Return CLIP's own vocabulary, or that of its first `merges` merges."""
    return ClipVocabulary(*(clip_vocabulary() if merges is None else clip_vocabulary(merges)))
