"""Other people's text, made fit to be shown: file names, prompts, identifiers, what a plugin says.

A file's name may hold escape sequences that steer a terminal, line breaks that forge a line of a
log, signs that reverse what is read, and Markdown. Whatever is printed or written for people to
read goes through one of these functions; what is stored as data stays as it is.
"""

from __future__ import annotations

import json
import re
from typing import Any

_UNSEEN = "\N{REPLACEMENT CHARACTER}"
_MARKUP = re.compile(r"[\\`*\[\]<]")


def printable(text: str) -> str:
    """Return a text without control characters; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else _UNSEEN for c in text)


def one_line(text: str) -> str:
    """Return a text without control characters, line breaks among them."""
    return "".join(c if c.isprintable() else _UNSEEN for c in text)


def flat(text: str) -> str:
    """Return a text on one line: any white space is a single space, other controls are gone."""
    return one_line(" ".join(text.split()))


def code_span(text: str) -> str:
    """Return a text as Markdown's code: nothing in it is markup."""
    return f"`{flat(text).replace('`', chr(39))}`"


def in_markdown(text: str) -> str:
    """Return a text for a line of Markdown: nothing in it is a link, HTML or emphasis."""
    return _MARKUP.sub(r"\\\g<0>", flat(text))


def json_text(value: Any) -> str:
    """Return plain data as indented JSON in which what a terminal would obey is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1] if ord(char) != 0x7F else "\\u007f"
