"""The job of a run, an option a line, with those marked that differ from their defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dreambooth.errors import UserError
from dreambooth.runs.finding import open_run
from dreambooth_plugins.report.document import Option

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dreambooth import Job
    from dreambooth_plugins.report.private import Scrub

PRIVATE = {"output", "version"}
"""Options that say where things lie, or nothing."""


def read_job(folder: Path) -> Job | None:
    """Return a run's job; None where it cannot be read here, as without its plugins."""
    try:
        return open_run(folder)[1]
    except (UserError, OSError):
        return None


def flat_options(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of every option of a resolved job."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from flat_options(value, f"{before}{key}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for i, item in enumerate(value):
                inside = item if isinstance(item, dict) else {"": item}
                yield from flat_options(inside, f"{before}{key}[{i + 1}].")
        else:
            yield f"{before}{key}", value


def options_of(data: Mapping[str, Any], job: Job | None, scrub: Scrub) -> list[Option]:
    """Return a resolved job's options; `job` tells the defaults."""
    marked = None if job is None else set(changed_keys(job))
    found = []
    for key, value in flat_options(data):
        if key in PRIVATE:
            continue
        words = "prompt" in key or key.endswith(("negative", "caption"))
        many = isinstance(value, list)
        if words and many and all(isinstance(item, str) for item in value):
            text = "; ".join(map(scrub.words, value))
        else:
            text = scrub.words(value) if words and isinstance(value, str) else scrub.value(value)
        changed = None if marked is None else key in marked
        found.append(Option(scrub.words(key), text, changed))
    return found


def changed_keys(model: BaseModel, before: str = "") -> Iterator[str]:
    """Yield the dotted keys whose value is not the default, or that have none."""
    for name, info in type(model).model_fields.items():
        value, key = getattr(model, name), f"{before}{name}"
        default = info.get_default(call_default_factory=True, validated_data={})
        if isinstance(value, BaseModel):
            kind = getattr(value, "kind", None)
            if kind is not None and kind != _kind(default):
                yield f"{key}.kind"
            yield from (k for k in changed_keys(value, f"{key}.") if not k.endswith(".kind"))
        elif isinstance(value, list | tuple) and any(isinstance(v, BaseModel) for v in value):
            kinds = [_kind(item) for item in default] if isinstance(default, list) else []
            for i, item in enumerate(value):
                if (mine := _kind(item)) is not None and mine not in kinds:
                    yield f"{key}[{i + 1}].kind"
                if isinstance(item, BaseModel):
                    inside = changed_keys(item, f"{key}[{i + 1}].")
                    yield from (k for k in inside if not k.endswith(".kind"))
        elif default is PydanticUndefined or _plain(default) != _plain(value):
            yield key


def _kind(value: Any) -> Any:
    return value if isinstance(value, str) else getattr(value, "kind", None)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | dict) else str(value)
