"""CLIP's byte-pair tokenizer without torch or transformers: for questions about single words."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.files import MAX_JSON, read_limited
from dreambooth.helpers.text import quoted
from dreambooth.interfaces import Vocabulary
from dreambooth_plugins.model.folder.clip_vocabulary import (
    byte_alphabet,
    byte_order,
    clip_vocabulary,
)
from dreambooth_plugins.model.folder.source import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from dreambooth_plugins.model.folder.source import Source

CLIP = "CLIPTokenizer"
WORD_END = "</w>"
FILES = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json")
MAX_TOKENS = 2**21
"""More ids than any vocabulary has."""
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

    def highest_id(self) -> int:
        """Return the highest id of a token; -1 where there is none."""
        return max(self._ids.values(), default=-1)

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


def has_vocabulary(folder: Path) -> bool:
    """Say whether a tokenizer folder has a vocabulary of its own."""
    return (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file()


def vocabulary_of(source: Source) -> ClipVocabulary | None:
    """Return the vocabulary of a model's first text encoder, None where that is not CLIP's kind:
    CLIP's own for a file with a shipped configuration."""
    first = source.in_role("text_encoders")[0]
    if first.tokenizer_cls != CLIP:
        return None
    folder = source.config / str(first.tokenizer)
    if source.file is not None and not has_vocabulary(folder):
        return shipped_vocabulary()
    return read_vocabulary(folder)


def read_vocabulary(folder: Path) -> ClipVocabulary:
    """Read a tokenizer folder (`vocab.json` and `merges.txt`, else `tokenizer.json`).

    `JobError` where it has neither, or where they hold something else. Read once while the files
    stay as they are.
    """
    files = [folder / name for name in FILES]
    there = [(file.name, file.stat()) for file in files if file.is_file()]
    return _read(folder, tuple((n, s.st_ino, s.st_size, s.st_mtime_ns) for n, s in there))


@lru_cache(maxsize=4)
def _read(folder: Path, stamp: tuple[Any, ...]) -> ClipVocabulary:
    whole = folder / "tokenizer.json"
    separate = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not separate and not whole.is_file():
        raise JobError(
            f"{folder} holds no vocabulary (tokenizer.json, or vocab.json and merges.txt)",
            "the model folder is incomplete: copy or download it again",
        )
    try:
        return _separate(folder) if separate else _whole(read_json(whole))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        files = "vocab.json and merges.txt" if separate else "tokenizer.json"
        said = getattr(error, "strerror", None) or error
        raise JobError(
            f"{folder}: {files} hold no vocabulary that can be read ({said})",
            "copy or download the folder again",
        ) from error


def _separate(folder: Path) -> ClipVocabulary:
    text = read_limited(folder / "merges.txt", MAX_JSON).decode("utf-8")
    merges = [_pair(line) for line in text.splitlines() if line and not line.startswith("#version")]
    more = folder / "added_tokens.json"
    added = _ids(read_json(more)) if more.is_file() else {}
    return ClipVocabulary(_ids(read_json(folder / "vocab.json")), merges, added)


def _whole(data: dict[str, Any]) -> ClipVocabulary:
    added = [token["content"] for token in data.get("added_tokens", ())]
    if not all(isinstance(token, str) for token in added):
        raise ValueError("an added token is no text")
    return ClipVocabulary(_ids(data["model"]["vocab"]), map(_pair, data["model"]["merges"]), added)


def _ids(found: dict[str, Any]) -> dict[str, int]:
    """Return token -> id as it is; `ValueError` for ids that are none."""
    for token, number in found.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MAX_TOKENS:
            raise ValueError(f'the id of "{token}" is {quoted(number)}')
    return found


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split() if isinstance(merge, str) else merge
    if not isinstance(left, str) or not isinstance(right, str):
        raise TypeError("a merge is not two texts")
    return left, right


def check_ids(found: ClipVocabulary, source: Source) -> None:
    """Raise `JobError` where the text encoder has no row for a token: prompts would run over."""
    for part in source.in_role("text_encoders"):
        if part.tokenizer_cls != CLIP:
            continue
        file = source.config_folder(part.name) / "config.json"
        rows = source.part_config(part.name).get("vocab_size", 49408)
        if found.highest_id() >= rows:
            raise JobError(
                f'{file}: "vocab_size" is {rows}, and the tokenizer has an id {found.highest_id()}',
                "take tokenizer and text encoder from the same model",
            )


def shipped_vocabulary(merges: int | None = None) -> ClipVocabulary:
    """Return CLIP's own vocabulary, or that of its first `merges` merges."""
    return ClipVocabulary(*(clip_vocabulary() if merges is None else clip_vocabulary(merges)))
