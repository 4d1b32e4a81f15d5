"""Text files of captions: which encoding they are in, and what to do about another one."""

from __future__ import annotations

import codecs
import re

AUTO = "auto"
_MARKS = (  # UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KANA = re.compile("[\u3040-\u30ff]")


class NotReadable(ValueError):
    """Bytes that are no text in the encodings that were tried; `guess` names a likely one."""

    def __init__(self, guess: str) -> None:
        super().__init__(guess)
        self.guess = guess


def read_text(data: bytes, encoding: str = AUTO) -> str:
    """Decode what a byte order mark announces, else UTF-8, else `encoding`.

    UTF-8 goes first: text in another encoding is hardly ever valid UTF-8, so a folder may hold
    both. Raises `NotReadable`.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            found = _decoded(data, name)
            break
    else:
        found = _decoded(data, "utf-8")
        if found is None and encoding != AUTO:
            found = _decoded(data, encoding)
    if found is None:
        raise NotReadable(_guess(data))
    return found


def known(encoding: str) -> str:
    """Return an encoding's name as it is; `ValueError` where Python reads no text by it."""
    try:
        if encoding != AUTO:
            "a".encode(encoding)
    except (LookupError, ValueError):
        raise ValueError(
            f"no text encoding is called {encoding[:40]!r}; "
            "common ones: utf-16, cp1252, latin-1, shift_jis, gb18030, euc_kr, cp1251"
        ) from None
    return encoding


def _decoded(data: bytes, encoding: str) -> str | None:
    """Return the text, None where it is none: zero bytes show UTF-16 read as something else."""
    try:
        text = data.decode(encoding)
    except ValueError:
        return None
    return None if "\0" in text else text


def _guess(data: bytes) -> str:
    head = data[: 1 << 16]
    if head.count(0):
        return "utf-16-le" if head[1::2].count(0) >= head[0::2].count(0) else "utf-16-be"
    for encoding in ("shift_jis", "euc_jp"):
        text = _decoded(data, encoding)
        if text is not None and _KANA.search(text):
            return encoding
    return "cp1252"
