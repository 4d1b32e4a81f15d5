"""pydantic's findings in plain words, each at its place in the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth.component.docs import option_docs
from dreambooth.helpers.text import did_you_mean, dotted, known_words, nearest, quoted
from dreambooth.jobs.aliases import reply_to
from dreambooth.jobs.keys import homes, model_at, slot_of
from dreambooth.jobs.wording import about_type, describe, first_sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

    from dreambooth.component import Location
    from dreambooth.jobs.diagnostics import Diagnostic
    from dreambooth.jobs.document import Document


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
        is_tag = isinstance(step, str) and (
            isinstance(data, list) or not step.isidentifier() or step in _SCALAR_TAGS
        )
        if is_tag and not (isinstance(data, dict) and step in data):
            tags.append((tuple(at), str(step)))
            continue
        at.append(step)
        if isinstance(data, dict):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            data = None
    return tuple(at), tags


_SCALAR_TAGS = {"int", "float", "str", "bool", "none", "path", "url"}


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
        if reply := reply_to(str(key)):
            return Fault(at, message, reply, on_key=True)
        near = nearest(key, own, cutoff=0.75)
        if near is None and (elsewhere := homes(self.root, str(key))):
            return Fault(at, message, f"it belongs in {' or '.join(elsewhere)}", on_key=True)
        hint = did_you_mean(key, own) or "no options are taken here"
        return Fault(at, message, hint, on_key=True, meant=near or nearest(key, own))

    def _missing(self, at: Location) -> Fault:
        if isinstance(at[-1], int):
            return Fault(at[:-1], f"{dotted(at[:-1])} has too few items")
        where = f"{quoted(dotted(at[:-1]))} needs" if at[:-1] else "the job needs"
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
        data = self.data
        for step in at:
            if isinstance(data, dict) and step in data:
                data = data[step]
            elif isinstance(data, list) and isinstance(step, int) and step < len(data):
                data = data[step]
            else:
                return False
        return True
