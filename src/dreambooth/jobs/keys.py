"""Which keys a place in a job takes, and where a key lives, installed plugins included."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dreambooth.component.tagged import Tagged
from dreambooth.plugins.slots import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

    from dreambooth.component import Location

Model = type[BaseModel]


def model_at(root: Model, data: Any, at: Location) -> Model | None:
    """Return the model that the mapping at `at` is checked by; None where there is none.

    `data` says which kind fills a slot; a kind that is left out is the slot's default.
    """
    return _walk(root, data, at)[0]


def slot_at(root: Model, data: Any, at: Location) -> Tagged | None:
    """Return what chooses a kind (of a field or list item) at `at`; None where nothing does."""
    return _slot(_walk(root, data, at)[1])


def homes(root: Model, key: str) -> list[str]:
    """Return where a key belongs, in words: `"train"`, `"optimizer" (kind adamw)`."""
    from dreambooth.plugins import registry

    found = ["the top level"] if key in root.model_fields else []
    found += [f'"{name}"' for name, model in sections(root) if key in model.model_fields]
    for slot in SLOTS.values():
        kinds = registry().kinds(slot.name)
        taken = " or ".join(f'"{field}"' for field in slot.fields)
        if not root.model_fields.keys() & set(slot.fields):  # a file that is no job
            continue
        having = [kind for kind, cls in kinds.items() if key in cls.model_fields and key != "kind"]
        if having and len(having) == len(kinds):
            found.append(taken)
        elif having:
            found.append(f"{taken} (kind {' or '.join(having)})")
        for field in slot.fields:
            found += _below_kinds(field, kinds, key)
    return list(dict.fromkeys(found))


def _below_kinds(name: str, kinds: Mapping[str, Model], key: str) -> Iterator[str]:
    """Yield the options of a slot's kinds that choose a kind themselves, one of which has `key`.

    Not those that are a slot of the job once more: a key is looked for there first.
    """
    for cls in kinds.values():
        for option, field in cls.model_fields.items():
            inner = slot_of(field)
            if inner is not None and inner.name in SLOTS:
                continue
            having = [
                kind
                for kind, model in (inner.kinds().items() if inner else ())
                if key in model.model_fields and key != "kind"
            ]
            if having:
                yield f'"{name}.{option}" (kind {" or ".join(having)})'


def slot_of(field: FieldInfo) -> Tagged | None:
    """Return what chooses a field's kind, where it has kinds."""
    return _slot(_annotation(field))


def slots_in(field: FieldInfo) -> list[Tagged]:
    """Return what chooses the kinds of a field, or of the items of a list in its place."""
    annotation = _annotation(field)
    return [slot for slot in (_slot(annotation), _slot(_item(annotation))) if slot]


def default_of(field: FieldInfo) -> Any:
    """Return a field's default; None where it has none."""
    value = field.get_default(call_default_factory=True, validated_data={})
    return None if value is PydanticUndefined else value


def _walk(root: Model, data: Any, at: Location) -> tuple[Model | None, Any]:
    """Return the model and the annotation at a location."""
    model: Model | None = root
    annotation: Any = root
    for step in at:
        data = below(data, step)
        if isinstance(step, int):
            annotation = _item(annotation)
        elif model is not None and step in model.model_fields:
            field = model.model_fields[step]
            annotation = _annotation(field)
            default = default_of(field)
            data = default if data is None and isinstance(default, str) else data
        else:
            return None, None
        model = _model(annotation, data)
    return model, annotation


def sections(root: Model, name: str = "") -> Iterator[tuple[str, Model]]:
    """Yield the sections of a job that are no slots, by name: `train`, `train.ema`."""
    for key, field in root.model_fields.items():
        model = None if slot_of(field) else _model(field.annotation, None)
        model = model or _model(_item(field.annotation), None)
        if model is not None:
            yield f"{name}{key}", model
            yield from sections(model, f"{name}{key}.")


def below(data: Any, step: str | int) -> Any:
    """Return what lies one step below in nested data; None where nothing does."""
    if isinstance(data, dict):
        return data.get(step)
    if isinstance(data, list) and isinstance(step, int) and step < len(data):
        return data[step]
    return None


def _annotation(field: FieldInfo) -> Any:
    for found in field.metadata:
        if isinstance(found, Tagged):
            return Annotated[field.annotation, found]
    return field.annotation


def _item(annotation: Any) -> Any:
    for alternative in _alternatives(annotation):
        bare = _bare(alternative)
        if get_origin(bare) in (list, tuple) and get_args(bare):
            return get_args(bare)[0]
    return None


def _model(annotation: Any, data: Any) -> Model | None:
    if slot := _slot(annotation):
        kind = data.get("kind") if isinstance(data, dict) else data
        return slot.kinds().get(kind) if isinstance(kind, str) else None
    for bare in map(_bare, _alternatives(_bare(annotation))):
        if isinstance(bare, type) and issubclass(bare, BaseModel):
            return bare
    return None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def _slot(annotation: Any) -> Tagged | None:
    """Return what chooses a kind, also of a field that may be left empty (`... | None`)."""
    for alternative in _alternatives(annotation):
        if get_origin(alternative) is Annotated:
            found = (m for m in get_args(alternative)[1:] if isinstance(m, Tagged))
            if tagged := next(found, None):
                return tagged
    return None


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
