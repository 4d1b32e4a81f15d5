"""Text for people to read: other people's made fit to be shown, secrets left out, words compared.

A file's name may hold escape sequences that steer a terminal, line breaks that forge a line of a
log, signs that reverse what is read, and Markdown. Whatever is printed or written for people to
read goes through one of these functions; what is stored as data stays as it is.
"""

from __future__ import annotations

import json
import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreambooth.component import Location

_UNSEEN = "\N{REPLACEMENT CHARACTER}"
SHOWN_VALUE = 60
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


_SECRET = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|ACCESS_KEY_ID|SECRET_KEY|PRIVATE_KEY)$",
    re.IGNORECASE,
)
"""How variables are named that hold a secret: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY."""
_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
"""Name and password in an address."""
SHORTEST = 8
"""Shorter values are no secrets, and stand in too many other words."""


def redacted(text: str) -> str:
    """Return a text in which secrets are replaced: `<HF_TOKEN>`, `https://<login>@host`."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value.strip()) >= SHORTEST:
            for form in (value.strip(), quote(value.strip(), safe="")):
                text = text.replace(form, f"<{name}>")
    return _LOGIN.sub("<login>", text)


def redacted_in(value: Any) -> Any:
    """Return plain data with every text in it redacted, keys aside."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_in(inner) for key, inner in value.items()}
    return [redacted_in(inner) for inner in value] if isinstance(value, list) else value


def quoted(value: Any) -> str:
    """Return a value as a person would write it in a job file, shortened, never over a line."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_VALUE else f"{text[: SHOWN_VALUE - 3]}..."


def dotted(at: Location) -> str:
    """Return `trackers.0.kind` for `("trackers", 0, "kind")`."""
    return ".".join(map(str, at))


def nearest(word: Any, known: Iterable[Any], cutoff: float = 0.6) -> str | None:
    """Return the known word most like `word`, letter case aside, or None."""
    by_lower = {str(k).lower(): str(k) for k in known}
    found = get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def did_you_mean(word: Any, known: Iterable[Any]) -> str:
    """Return `did you mean "x"?`, or which words are known, or nothing where none is."""
    names = list(dict.fromkeys(map(str, known)))
    near = nearest(word, names)
    return f'did you mean "{near}"?' if near else known_words(names)


def known_words(names: Sequence[str], most: int = 16) -> str:
    """Return `known: a, b, c`, shortened; nothing for no names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"known: {', '.join(names[:most])}{more}" if names else ""
