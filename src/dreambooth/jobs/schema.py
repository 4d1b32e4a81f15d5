"""JSON Schema of a job, with the options of every installed kind: what editors check against."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from dreambooth import files
from dreambooth.component.previews import PromptsFile
from dreambooth.job import Job
from dreambooth.jobs.keys import sections, slots_in
from dreambooth.plugins import Slot

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from dreambooth.component import Section

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a job file.

    A slot takes a mapping with its `kind`, which is required there, or the bare name of a kind
    whose options all have defaults.
    """
    schema = Job.model_json_schema()
    _tidy(schema)
    members: dict[str, Any] = {}
    _name_slots(schema, Job, members)
    for _, section in sections(Job):
        _name_slots(schema["$defs"].get(section.__name__, {}), section, members)
    definitions = {**schema.pop("$defs", {}), **members}
    return {"$schema": DIALECT, **schema, "title": "DreamBooth job", "$defs": definitions}


def prompts_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a file of prompts."""
    return file_schema(PromptsFile, "DreamBooth prompts")


def file_schema(model: type[Section], title: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a file that is typed by `model`."""
    schema = model.model_json_schema()
    _tidy(schema)
    return {"$schema": DIALECT, **schema, "title": title}


def schema_text(schema: dict[str, Any] | None = None) -> str:
    """Return a schema, the job's by default, as it is written to files."""
    return json.dumps(schema or job_schema(), indent=2, ensure_ascii=False) + "\n"


def write(path: Path, text: str | None = None) -> None:
    """Write a schema, the job's by default, to a file, whole or not at all."""
    files.write_text(path, text or schema_text())


def _tidy(node: Any) -> None:
    """Below a node: drop titles that repeat a key, unwrap descriptions, require each kind."""
    if isinstance(node, list):
        for item in node:
            _tidy(item)
    if not isinstance(node, dict):
        return
    properties = node.get("properties", {})
    for option in properties.values():
        option.pop("title", None)
    if isinstance(text := node.get("description"), str):
        node["description"] = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
    kind = properties.get("kind", {}).get("const")
    if kind is not None:
        properties["kind"] = {"const": kind, "type": "string"}
        node["title"] = kind
        node["required"] = ["kind", *(k for k in node.get("required", ()) if k != "kind")]
    for key, value in node.items():
        if key not in ("default", "enum", "const"):
            _tidy(value)


def _name_slots(node: dict[str, Any], cls: type[BaseModel], members: dict[str, Any]) -> None:
    """Move what the kinds of a class's slots take to definitions of their own."""
    for name, field in cls.model_fields.items():
        for slot in slots_in(field):
            if isinstance(slot, Slot):
                _name_members(node["properties"][name], slot, members)


def _name_members(node: dict[str, Any], slot: Slot, members: dict[str, Any]) -> dict[str, Any]:
    """Move what the kinds of a slot take to definitions named `slot.kind`; return the node."""
    kind = node.get("properties", {}).get("kind", {}).get("const")
    if kind is not None:
        members[f"{slot.name}.{kind}"] = node
        _name_slots(node, slot.kinds()[kind], members)
        return {"$ref": f"#/$defs/{slot.name}.{kind}"}
    if "anyOf" in node:
        node["anyOf"] = [_name_members(member, slot, members) for member in node["anyOf"]]
    if "items" in node:
        node["items"] = _name_members(node["items"], slot, members)
    return node
