"""The byte-pair vocabulary of OpenAI's CLIP, as Stable Diffusion 1.x and 2.x use it.

The list of merges ships as `bpe_simple_vocab_16e6.txt.gz`; the vocabulary follows from it.
"""

from __future__ import annotations

import gzip
from pathlib import Path

MERGES_FILE = Path(__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49_408 - 2 * 256 - 2
"""How many merges CLIP uses: its vocabulary less two forms of each byte and two special tokens."""


PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""Bytes that are printable characters of Latin-1."""


def byte_order() -> list[int]:
    """Return the 256 bytes in CLIP's order of token ids: the printable ones first."""
    return [*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE)]


def byte_alphabet() -> list[str]:
    """Return the printable stand-ins of the bytes, in the order of `byte_order`.

    Printable Latin-1 characters stand for themselves, the other bytes for code points from 256.
    """
    rest = range(256, 512 - len(PRINTABLE))
    return [chr(code) for code in (*PRINTABLE, *rest)]


def clip_vocabulary(merges: int = MERGES) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return (token -> id, merges) of CLIP, or of its first `merges` merges alone.

    Ids: 256 bytes, the same with `</w>`, one token a merge, start and end of text.
    """
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()[1 : 1 + merges]  # the first line is a version
    pairs = [(left, right) for left, right in (line.split() for line in lines)]
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in pairs), START, END]
    return {token: i for i, token in enumerate(tokens)}, pairs
