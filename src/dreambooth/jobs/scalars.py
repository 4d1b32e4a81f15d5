"""Scalars of YAML 1.2's core schema: a plain one read, any value written."""

from __future__ import annotations

import json
import re
from typing import Any

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"[-+]?\.(inf|Inf|INF)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_PLAIN = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./ ()+-]*(?<! )")
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def resolve(text: str) -> Any:
    """Return the value of a plain scalar by the core schema; `ValueError` for unusable numbers."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > 100:
            raise ValueError("too long a number")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise ValueError("too large a number")
        return number
    if _INF.fullmatch(text):
        return float(text.replace(".", ""))
    if text in (".nan", ".NaN", ".NAN"):
        raise ValueError("not a number")
    return text


def written(value: Any) -> str:
    """Return a scalar as it stands in a document: read back, it is the same value."""
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf"}.get(repr(value), repr(value))
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and _reads_as_text(value):
            return value
        # JSON's strings are YAML's double-quoted ones, but for what YAML does not print.
        text = json.dumps(value, ensure_ascii=False)
        return _ESCAPED.sub(lambda m: f"\\u{ord(m.group()):04x}", text)
    return json.dumps(value)


def _reads_as_text(text: str) -> bool:
    """Say whether a text may stand without quotes: it is read back as itself."""
    try:
        return isinstance(resolve(text), str)
    except ValueError:
        return False
