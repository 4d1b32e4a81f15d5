"""Descriptions of plugins and kinds for `dbt plugins show`."""

from __future__ import annotations

import inspect
import json
import textwrap
import types
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from dreambooth.component.docs import option_docs
from dreambooth.component.tagged import Tagged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic.fields import FieldInfo

    from dreambooth.plugins import PluginInfo, Registry

_BOUNDS = {
    "ge": ">= {}", "gt": "> {}", "le": "<= {}", "lt": "< {}", "multiple_of": "a multiple of {}",
    "min_length": "at least {} long", "max_length": "at most {} long", "pattern": "like {}",
}  # fmt: skip


def describe_kind(reg: Registry, slot: str, kind: str) -> dict[str, Any]:
    """Return what is known of a kind as plain JSON data: origin, docstring, options."""
    cls, info = reg.kinds(slot)[kind], reg.provider(slot, kind)
    if not cls.__pydantic_fields_complete__:
        cls.model_rebuild()
    docs = option_docs(cls)
    options = [_option(n, f, docs.get(n, "")) for n, f in cls.model_fields.items() if n != "kind"]
    return {
        "slot": slot,
        "kind": kind,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "plugin": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "options": options,
    }


def describe_slot(reg: Registry, slot: str) -> dict[str, Any]:
    """Return what is known of a slot as plain JSON data: its base, hook, place and kinds."""
    from dreambooth.plugins.slots import SLOTS

    info = SLOTS[slot]
    return {
        "slot": slot,
        "doc": inspect.cleandoc(info.base.__doc__ or ""),
        "class": f"{info.base.__module__}.{info.base.__qualname__}",
        "hook": info.hook,
        "fields": list(info.fields),
        "command": "" if info.fields else info.named_in,
        "kinds": {
            kind: {"doc": _first_line(cls), "plugin": reg.provider(slot, kind).name}
            for kind, cls in reg.kinds(slot).items()
        },
    }


def slot_text(slot: dict[str, Any]) -> str:
    """Lay out a slot for reading: where it is filled, by whom, and the first line of each kind."""
    where = f"in a job: {', '.join(slot['fields'])}" if slot["fields"] else slot["command"]
    lines = [f"slot {slot['slot']}", f"  {where}"]
    lines += [f"  base {slot['class']}, hook {slot['hook']}", ""]
    lines += [textwrap.indent(slot["doc"], "  "), "", "  kinds:"]
    for kind, about in slot["kinds"].items():
        lines.append(f"    {kind}{': ' if about['doc'] else ''}{about['doc']}")
    return "\n".join([*lines, "", f"  dbt plugins show {slot['slot']}/KIND shows options"])


def _first_line(cls: type | None) -> str:
    return inspect.cleandoc((cls and cls.__doc__) or "").split("\n")[0]


def _option(name: str, option: FieldInfo, doc: str) -> dict[str, Any]:
    required = option.is_required()
    default = None if required else _plain(option.get_default(call_default_factory=True))
    return {
        "name": name,
        "type": type_text(option.annotation, option.metadata),
        "required": required,
        "default": default,
        "description": " ".join(doc.split()),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return str(value)


def type_text(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Write a type the way a job file's author thinks of it: `"mse" | "l1"`, `float > 0`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(args[0], [*args[1:], *metadata])
    if tagged := next((m for m in metadata if isinstance(m, Tagged)), None):
        return " | ".join(tagged.kinds())
    if origin in (Union, types.UnionType):  # bounds hold for whatever is not null
        return " | ".join(type_text(a, () if a is type(None) else metadata) for a in args)
    if origin is Literal:
        text = " | ".join(map(json.dumps, args))
    elif origin is not None:
        inside = ", ".join("..." if a is Ellipsis else type_text(a) for a in args)
        text = f"{origin.__name__.lower()}[{inside}]"
    else:
        names = {Path: "path", type(None): "null", Any: "anything"}
        text = names.get(annotation) or str(getattr(annotation, "__name__", annotation))
    return text + _bounds(metadata)


def _bounds(metadata: Iterable[Any]) -> str:
    flat = [part for entry in metadata for part in getattr(entry, "metadata", [entry])]
    found = [
        text.format(getattr(entry, name))
        for entry in flat
        for name, text in _BOUNDS.items()
        if getattr(entry, name, None) is not None
    ]
    return f" {' and '.join(found)}" if found else ""


def kind_text(kind: dict[str, Any]) -> str:
    """Lay out a kind for reading."""
    origin = " ".join(filter(None, (kind["distribution"], kind["version"]))) or "registered here"
    lines = [f"{kind['slot']}/{kind['kind']}", f'  plugin "{kind["plugin"]}" ({origin})']
    lines += [f"  class {kind['class']}", "", textwrap.indent(kind["doc"], "  ")]
    if not kind["options"]:
        return "\n".join([*lines, "", "  no options"])
    lines += ["", "  options:"]
    for option in kind["options"]:
        default = "required" if option["required"] else f"default {json.dumps(option['default'])}"
        lines.append(f"    {option['name']}: {option['type']} ({default})")
        lines += textwrap.wrap(option["description"], 90, **_INDENT)
    return "\n".join(lines)


_INDENT: dict[str, Any] = {"initial_indent": " " * 8, "subsequent_indent": " " * 8}


def plugin_text(reg: Registry, info: PluginInfo) -> str:
    """Lay out a plugin for reading: status, and each kind with the first line about it."""
    lines = [f"plugin {info}", f"  status: {info.status}"]
    if info.error:
        lines.append(f"  error: {info.error}")
    for slot, kinds in info.kinds.items():
        for kind in kinds:
            cls = reg.kinds(slot).get(kind)
            doc = _first_line(cls)
            lines.append(f"  {slot}/{kind}{': ' if doc else ''}{doc if cls else ' (unusable)'}")
    lines += [f"  command: dbt {command}" for command in info.commands]
    return "\n".join(lines)
