"""What pydantic says about one value, in plain words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dreambooth.helpers.text import dotted, nearest, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic_core import ErrorDetails

    from dreambooth.component import Location

_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "path_type": "a path",
    "none_required": "null",
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping"),
}

_RULES: Mapping[str, str] = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must look like {pattern}",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
}

_PATTERNS: Mapping[str, str] = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": (
        'may hold letters, digits, ".", "_" and "-", and begins with a letter or a digit'
    ),
}

_SWITCHES = {
    **dict.fromkeys(("yes", "on", "true", "y"), "true"),
    **dict.fromkeys(("no", "off", "false", "n"), "false"),
}


def about_type(error: ErrorDetails) -> bool:
    """Say whether a finding is that the value is of another type, or not one of some words."""
    return error["type"] in _TYPES or error["type"] == "literal_error"


def describe(at: Location, errors: Sequence[ErrorDetails]) -> tuple[str, str]:
    """Return message and hint for the findings at one place (several: members of a union)."""
    error = errors[0]
    kind, ctx = error["type"], error.get("ctx", {})
    name = dotted(at) or "the job"
    if any(map(about_type, errors)):
        return _wrong_type(name, errors, error["input"])
    if kind in ("value_error", "assertion_error"):
        return (f"{name}: {ctx['error']}" if at else str(ctx["error"])), ""
    if kind == "string_too_short" and ctx["min_length"] == 1:
        return f"{name} must not be empty", ""
    if kind == "string_pattern_mismatch" and ctx["pattern"] in _PATTERNS:
        return f"{name} {_PATTERNS[ctx['pattern']]}, is {quoted(error['input'])}", ""
    shown = {key: f"{v:g}" if isinstance(v, float) else v for key, v in ctx.items()}
    said = error["msg"].replace("Input should", "it should")
    rule = _RULES[kind].format(**shown) if kind in _RULES else f"is refused: {said}"
    return f"{name} {rule}, is {quoted(error['input'])}", ""


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring, on one line, without its full stop."""
    return re.split(r"\.(?=\s+[A-Z]|\s*$)", " ".join(text.split()))[0]


def _wrong_type(name: str, errors: Sequence[ErrorDetails], given: Any) -> tuple[str, str]:
    wanted: list[str] = []
    words: list[str] = []
    for error in errors:
        if error["type"] == "literal_error":
            words += _words(error["ctx"]["expected"])
        elif error["type"] in _TYPES:
            wanted.append(_TYPES[error["type"]])
    wanted = [*(w if w.isdigit() else quoted(w) for w in words), *dict.fromkeys(wanted)]
    options = " or ".join(filter(None, (", ".join(wanted[:-1]), wanted[-1])))
    message = f"{name} must be {options}, is {quoted(given)}"
    if isinstance(given, str) and given in words and given.isdigit():
        return message, f"write {given} without quotes"
    near = nearest(given, words) if isinstance(given, str) else None
    return message, f'did you mean "{near}"?' if near else _repair(wanted, given)


def _repair(wanted: Sequence[str], given: Any) -> str:
    """Guess what was meant by a value of the wrong type; nothing where there is no guess."""
    if given is None:
        return "give a value, or leave the line out"
    numeric = "a whole number" in wanted or "a number" in wanted
    if isinstance(given, str) and (meant := _meant(given, wanted, numeric)):
        return f"write {meant}"
    if "a list" in wanted and isinstance(given, str | int | float):
        return f"write [{given}]"
    if "text" in wanted and isinstance(given, bool | int | float):
        return "put it in quotes"
    if numeric and isinstance(given, float) and given.is_integer():
        return f"write {int(given)}"
    return ""


def _meant(given: str, wanted: Sequence[str], numeric: bool) -> str:
    text = given.strip().lower().replace("_", "")
    if "true or false" in wanted:
        return _SWITCHES.get(text, "")
    is_number = numeric and re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", text)
    return f"{text}, without quotes or underscores" if is_number else ""


def _words(expected: str) -> list[str]:
    """Return the words of pydantic's `'auto', 'fp32' or 'bf16'`."""
    found = re.findall(r"'([^']*)'|(-?[\w.]+)", expected)
    return [word or bare for word, bare in found if bare != "or"]
