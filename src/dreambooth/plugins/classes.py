"""What a plugin must satisfy: known hooks, lists of classes, kinds, methods, readable options."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from dreambooth.component import Component, Section
from dreambooth.component.door import ADDED
from dreambooth.errors import PluginError
from dreambooth.plugins.found import COMMANDS
from dreambooth.plugins.hooks import COMMAND_HOOK, FILE_HOOK, answers, short
from dreambooth.plugins.slots import SLOTS, SlotInfo

KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SLOT_OF_HOOK: Mapping[str, SlotInfo] = {slot.hook: slot for slot in SLOTS.values()}
ELSEWHERE = dict.fromkeys(
    (COMMAND_HOOK, FILE_HOOK),
    f'belongs into a module of its own, named under the entry-point group "{COMMANDS}": '
    "`dbt --help` loads that group and nothing else",
)
"""Hooks that this group does not take, and what to do with them."""

Classes = dict[tuple[str, str], type[Component]]
"""Component classes by (slot, kind)."""


def call_hooks(plugin: Any, name: str, into: Classes) -> None:
    """Register `plugin` with a manager of its own, call its hooks, put its classes in `into`.

    One manager a plugin makes the rollback whole. Raises whatever is wrong; what was found
    until then stays in `into`.
    """
    for hook, answer in answers(plugin, name, SLOT_OF_HOOK, ELSEWHERE):
        _collect(answer, SLOT_OF_HOOK[hook], into)


def _collect(answer: Any, slot: SlotInfo, into: Classes) -> None:
    if not isinstance(answer, list):
        raise PluginError(f"hook {slot.hook} must return a list of classes, not {short(answer)}")
    for cls in answer:
        kind = check_class(cls, slot)
        if (slot.name, kind) in into:
            raise PluginError(f'hook {slot.hook} brings the kind "{kind}" twice')
        into[slot.name, kind] = cls
        check_methods(cls, slot)


def check_class(cls: Any, slot: SlotInfo) -> str:
    """Return the kind of a class a hook returned; `PluginError` where it is not a component."""
    if not isinstance(cls, type):
        raise PluginError(f"hook {slot.hook} must return classes; {short(cls)} is none")
    if not issubclass(cls, slot.base) or cls is slot.base:
        base = slot.base.__name__
        raise PluginError(f"{cls.__name__} is not a subclass of {base} (hook {slot.hook})")
    if not cls.__pydantic_fields_complete__:
        check_options(cls)  # resolves the annotations, or says which name is not there
    option = cls.model_fields["kind"]
    kind = option.default
    literal = get_origin(option.annotation) is Literal and get_args(option.annotation) == (kind,)
    if not isinstance(kind, str) or not literal:
        raise PluginError(
            f'{cls.__name__} needs a kind: `kind: Literal["my_{slot.name}"] = "my_{slot.name}"`'
        )
    if not KIND.fullmatch(kind):
        raise PluginError(f'{cls.__name__}: "{kind}" is no kind; use letters, digits and _')
    return kind


def _interface(base: type[Component]) -> Iterator[tuple[str, Any]]:
    """Yield the public methods of a slot base, pydantic's own left out."""
    owners = base.__mro__[: base.__mro__.index(Section)]
    for name in dict.fromkeys(name for owner in owners for name in vars(owner)):
        value = inspect.getattr_static(base, name)
        if inspect.isfunction(value) and not name.startswith("_"):
            yield name, value


def required_methods(base: type[Component]) -> tuple[str, ...]:
    """Return the methods of a slot base that raise NotImplementedError and do nothing else."""
    return tuple(n for n, f in _interface(base) if f.__code__.co_names == ("NotImplementedError",))


def check_methods(cls: type[Component], slot: SlotInfo) -> None:
    """Check that a class has its slot's methods and that they take what the engine passes."""
    required = required_methods(slot.base)
    for name, declared in _interface(slot.base):
        own = inspect.getattr_static(cls, name)
        if own is declared and name in required:
            raise PluginError(f"{cls.__name__} must implement {slot.base.__name__}.{name}()")
        if own is declared or not inspect.isfunction(own):
            continue
        theirs = inspect.signature(own).parameters
        parameters = {
            n: p
            for n, p in inspect.signature(declared).parameters.items()
            if n in theirs or n not in ADDED.get(declared, ())
        }
        by_name = {n: n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        try:
            inspect.signature(own).bind(*(n for n in parameters if n not in by_name), **by_name)
        except TypeError as error:
            called = f"{name}({', '.join(parameters)})"
            raise PluginError(f"{cls.__name__} must allow {called}: {error}") from None


def check_options(cls: type[Component]) -> None:
    """Build validator and schema now: an option type that cannot be read would otherwise fail
    later, in everybody's schema."""
    try:
        cls.model_rebuild()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a default without JSON form is merely left out
            cls.model_json_schema()
    except Exception as error:
        reason = " ".join(str(error).split("\n\nFor further")[0].split())
        raise PluginError(f"{cls.__name__} has an option that cannot be read: {reason}") from error
