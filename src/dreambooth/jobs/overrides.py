"""`-o section.key=value`: values set from the command line, checked like those of the file."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from dreambooth.errors import JobError
from dreambooth.helpers.text import dotted, quoted
from dreambooth.jobs.diagnostics import Diagnostic, JobErrors
from dreambooth.jobs.keys import default_of, model_at, slot_at
from dreambooth.jobs.yaml import NOT_TEXT, YamlProblem, compose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.component import Location
    from dreambooth.jobs.document import Document


def overridden(document: Document, overrides: Sequence[str], root: type[BaseModel]) -> Document:
    """Return the document with values replaced; `JobErrors` for what cannot be read or placed.

    A slot that the file fills by name, or leaves to its default, becomes a mapping of that kind.
    Items of lists are named by their index, the next free one included.
    """
    data, places = deepcopy(document.data), dict(document.overrides)
    faults: list[Diagnostic] = []
    for text in overrides:
        try:
            steps, value = _split(text)
            at = _Setter(root, data).set(steps, value)
        except JobError as error:
            faults.append(Diagnostic(f"-o {text}", None, None, error.message, error.hint))
            continue
        places.pop(at, None)  # the newest comes last
        places[at] = text
    if faults:
        raise JobErrors(faults)
    return replace(document, data=data, overrides=places)


def _split(text: str) -> tuple[list[str], Any]:
    if found := NOT_TEXT.search(text):
        raise JobError(f"U+{ord(found.group()):04X} is not a character of a text")
    name, equals, value = text.partition("=")
    steps = name.strip().split(".")
    if not equals:
        raise JobError('has no "="', "write it as section.key=value")
    if not all(steps):
        raise JobError("names no key", "write it as section.key=value")
    return steps, _value(value.strip())


def _value(text: str) -> Any:
    """Read a YAML scalar, or a list or mapping in brackets; other text is taken as it is."""
    if not text:
        raise JobError("has no value", 'write null, or "" in quotes for an empty text')
    try:
        composed = compose(text)
    except YamlProblem as problem:
        if text[0] not in "[{\"'":  # `ratio: 3:4` is text here, a syntax fault in a file
            return text
        hint = problem.hint or "the shell takes quotes away: put the whole option in quotes"
        raise JobError(problem.message, hint) from None
    if composed.problems:
        raise composed.problems[0]
    return composed.data if composed.flow and not composed.empty else text


class _Setter:
    def __init__(self, root: type[BaseModel], data: dict[str, Any]) -> None:
        self.root = root
        self.data = data

    def set(self, steps: Sequence[str], value: Any) -> Location:
        """Set one value in place; return its location."""
        container: Any = self.data
        at: Location = ()
        for step, after in pairwise(steps):
            key = self._key(container, at, step)
            at = (*at, key)
            below = self._opened(self._get(container, key, at), at, after)
            self._put(container, key, below)
            container = below
        key = self._key(container, at, steps[-1])
        self._put(container, key, value)
        return (*at, key)

    def _key(self, container: Any, at: Location, step: str) -> str | int:
        if not isinstance(container, list):
            return step
        if not step.isdecimal() or int(step) > len(container):
            last = len(container)
            raise JobError(
                f"{dotted(at)} is a list of {last}", f"name an item by index, 0 to {last}"
            )
        return int(step)

    def _get(self, container: Any, key: str | int, at: Location) -> Any:
        """Return what stands at a location, or the default where nothing does."""
        if isinstance(key, int):
            return container[key] if key < len(container) else None
        if key in container:
            return container[key]
        parent = model_at(self.root, self.data, at[:-1])
        field = parent.model_fields.get(key) if parent else None
        return deepcopy(default_of(field)) if field else None

    def _opened(self, value: Any, at: Location, after: str) -> Any:
        """Return the list or mapping to go on in; `after` is the key below it.

        A bare kind becomes a mapping, and so does what is short for a section that has the key.
        """
        section = model_at(self.root, self.data, at)
        short = getattr(section, "short_for", "")
        if section and short and after in section.model_fields and not isinstance(value, dict):
            return {short: value} if value is not None else {}
        if isinstance(value, dict | list):
            return value
        if value is None or isinstance(value, BaseModel):
            return {}
        if isinstance(value, str) and slot_at(self.root, self.data, at):
            return {"kind": value}
        raise JobError(f"{dotted(at)} is {quoted(value)}, which has nothing below it")

    @staticmethod
    def _put(container: Any, key: str | int, value: Any) -> None:
        if isinstance(key, int) and key == len(container):
            container.append(value)
        else:
            container[key] = value
