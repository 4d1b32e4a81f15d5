"""pydantic's findings in plain words, each at its place in the job."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from dreambooth.component.docs import option_docs
from dreambooth.helpers.text import did_you_mean, dotted, known_words, nearest, quoted
from dreambooth.job import Job
from dreambooth.jobs.aliases import reply_to
from dreambooth.jobs.keys import below, homes, model_at, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

    from dreambooth.component import Location
    from dreambooth.jobs.diagnostics import Diagnostic
    from dreambooth.jobs.document import Document


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
_NONE = ("none", "off", "no", "false")
_SCALAR_TAGS = {"int", "float", "str", "bool", "none", "path", "url"}


@dataclass(frozen=True)
class Fault:
    """One finding: where, in plain words."""

    at: Location
    message: str
    hint: str = ""
    on_key: bool = False
    meant: str | None = None
    """The key that an unknown one probably stands for."""


def explain(error: ValidationError, document: Document, root: type[BaseModel]) -> list[Diagnostic]:
    """Translate everything pydantic found in a document."""
    explainer = _Explainer(root, document.data)
    places = _by_place(error.errors(include_url=False), document.data)
    faults = [explainer.fault(at, errors) for at, errors in places.items()]
    meant = {(*f.at[:-1], f.meant) for f in faults if f.meant}  # a misspelt key is not missing too
    return [
        document.diagnostic(f.at, f.message, f.hint, on_key=f.on_key)
        for f in faults
        if f.at not in meant
    ]


def _by_place(errors: Iterable[ErrorDetails], data: Any) -> dict[Location, list[ErrorDetails]]:
    """Group errors by location, union members left out of it.

    Of a union, members that at least took the value's type say what is wrong with it; only
    where none did, all of them are kept (they are joined to one sentence).
    """
    cleaned = [(*_clean(error["loc"], data), error) for error in errors]
    fitting: dict[Location, set[str]] = {}
    for at, tags, error in cleaned:
        for place, tag in tags:
            if at != place or not about_type(error):
                fitting.setdefault(place, set()).add(tag)
    places: dict[Location, list[ErrorDetails]] = {}
    for at, tags, error in cleaned:
        if all(tag in fitting.get(place, {tag}) for place, tag in tags):
            places.setdefault(at, []).append(error)
    return places


def _clean(loc: Sequence[str | int], data: Any) -> tuple[Location, list[tuple[Location, str]]]:
    """Split a location into the keys and indices of the job, and the unions' member names."""
    at: list[str | int] = []
    tags: list[tuple[Location, str]] = []
    for step in loc:
        # Sections go by their class's name, which no option has: those begin with a small letter.
        is_tag = isinstance(step, str) and (
            isinstance(data, list)
            or not step.isidentifier()
            or step in _SCALAR_TAGS
            or step[0].isupper()
        )
        if is_tag and not (isinstance(data, dict) and step in data):
            tags.append((tuple(at), str(step)))
            continue
        at.append(step)
        data = below(data, step)
    return tuple(at), tags


class _Explainer:
    def __init__(self, root: type[BaseModel], data: Any) -> None:
        self.root = root
        self.data = data

    def fault(self, at: Location, errors: Sequence[ErrorDetails]) -> Fault:
        error = errors[0]
        kind = error["type"]
        if kind == "extra_forbidden":
            return self._unknown_key(at)
        if kind == "missing":
            return self._missing(at)
        if kind.startswith("slot_"):
            return self._slot(at, error)
        message, hint = describe(at, errors)
        return Fault(at, message, hint)

    def _unknown_key(self, at: Location) -> Fault:
        key = at[-1]
        model = model_at(self.root, self.data, at[:-1])
        own = [k for k in model.model_fields if k != "kind"] if model else []
        message = f"unknown key {quoted(key)}"
        if issubclass(self.root, Job) and (reply := reply_to(str(key))):
            return Fault(at, message, reply, on_key=True)
        near = nearest(key, own, cutoff=0.75)
        if near is None and (elsewhere := homes(self.root, str(key))):
            return Fault(at, message, f"it belongs in {' or '.join(elsewhere)}", on_key=True)
        hint = did_you_mean(key, own) or "no options are taken here"
        return Fault(at, message, hint, on_key=True, meant=near or nearest(key, own))

    def _missing(self, at: Location) -> Fault:
        if isinstance(at[-1], int):
            return Fault(at[:-1], f"{dotted(at[:-1])} has too few items")
        whole = "the job" if issubclass(self.root, Job) else "the file"
        where = f"{quoted(dotted(at[:-1]))} needs" if at[:-1] else f"{whole} needs"
        parent = model_at(self.root, self.data, at[:-1])
        field = parent.model_fields.get(at[-1]) if parent else None
        about = first_sentence(option_docs(parent).get(at[-1], "")) if parent else ""
        slot = slot_of(field) if field else None
        if slot is not None:
            about = f"{about}; {known_words(list(slot.kinds()))}"
        return Fault(at, f"{where} {quoted(at[-1])}", about)

    def _slot(self, at: Location, error: ErrorDetails) -> Fault:
        ctx, kind = error.get("ctx", {}), error["type"]
        known: list[str] = ctx["known"]
        given = error["input"]
        if kind == "slot_kind":
            hint = "; ".join(filter(None, (did_you_mean(ctx["kind"], known), ctx["why"])))
            message = f"unknown {ctx['slot']} kind {quoted(ctx['kind'])}"
            if isinstance(given, dict):
                return Fault((*at, "kind"), message, hint)
            if not self._written(at):
                message = f"{quoted(dotted(at))} is left out, and its default is an {message}"
            return Fault(at, message, hint)
        if kind == "slot_no_kind" and "kind" in given:
            message = f"kind must be text, is {quoted(given['kind'])}"
            return Fault((*at, "kind"), message, known_words(known))
        if kind == "slot_no_kind":
            return Fault(at, f'{quoted(dotted(at))} needs a "kind"', known_words(known), True)
        if given is None:
            hint = f"name a kind, or leave the line out; {known_words(known)}"
            return Fault(at, f"{quoted(dotted(at))} is empty", hint, on_key=True)
        message = f'{dotted(at)} must be a kind or a mapping with "kind", is {quoted(given)}'
        return Fault(at, message, known_words(known))

    def _written(self, at: Location) -> bool:
        parent = reduce(below, at[:-1], self.data)
        return not isinstance(parent, dict) or at[-1] in parent


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
        return "write [] for none" if str(given).lower() in _NONE else f"write [{given}]"
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
