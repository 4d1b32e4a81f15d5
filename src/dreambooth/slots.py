"""Slots: fields of a job that any installed component of the right base can fill."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationInfo
from pydantic_core import PydanticCustomError, core_schema

from dreambooth import interfaces
from dreambooth.component import Component

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue


@dataclass(frozen=True)
class SlotInfo:
    """A slot's base class and the hook that fills it."""

    name: str
    base: type[Component]
    hook: str
    field: str
    """Where in a job the slot is filled."""
    also: tuple[str, ...] = ()
    """Further fields that take the same kinds."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field of a job that takes the slot's kinds."""
        return (self.field, *self.also)


SLOTS: Mapping[str, SlotInfo] = {
    name: SlotInfo(name, base, hook, field, tuple(also))
    for name, base, hook, field, *also in (
        ("model", interfaces.Model, "register_models", "model"),
        ("data", interfaces.DataSource, "register_data_sources", "data"),
        ("prior", interfaces.Prior, "register_priors", "prior"),
        ("freezing", interfaces.FreezingPolicy, "register_freezing_policies", "freezing"),
        ("loss", interfaces.Loss, "register_losses", "loss"),
        ("scheduler", interfaces.Scheduler, "register_schedulers", "scheduler"),
        ("sampler", interfaces.Sampler, "register_samplers", "sampler"),
        ("optimizer", interfaces.Optimizer, "register_optimizers", "optimizer"),
        ("lr_schedule", interfaces.LRSchedule, "register_lr_schedules", "lr_schedule"),
        ("tracker", interfaces.Tracker, "register_trackers", "trackers"),
        ("metric", interfaces.Metric, "register_metrics", "metrics"),
        ("exporter", interfaces.Exporter, "register_exporters", "exports"),
        ("callback", interfaces.Callback, "register_callbacks", "callbacks", "early_stop"),
    )
}


class Slot:
    """Annotation of a job field: `Annotated[Loss, Slot("loss")]`.

    Takes `{kind: name, ...}`, the bare name, or an instance of the slot's base (registered or
    not). The kinds are looked up when a job is validated, so plugins may be loaded late, and
    error locations point into the mapping the person wrote. Job files (JSON mode) are checked
    strictly; Python values by pydantic's usual rules.
    """

    def __init__(self, name: str) -> None:
        self.info = SLOTS[name]

    def validate(self, value: Any, info: ValidationInfo) -> Component:
        """Turn what a job says into a component."""
        if isinstance(value, self.info.base):
            return value
        options: Any = {"kind": value} if isinstance(value, str) else value
        if not isinstance(options, dict):
            raise PydanticCustomError(
                "slot_type",
                '{slot} takes a kind or a mapping with "kind"',
                {"slot": self.info.name, "known": list(self._kinds())},
            )
        cls = self._lookup(options)
        if info.mode == "json":
            return cls.model_validate_json(json.dumps(options), strict=True, context=info.context)
        return cls.model_validate(options, context=info.context)

    def _kinds(self) -> Mapping[str, type[Component]]:
        from dreambooth.plugins import registry

        return registry().kinds(self.info.name)

    def _lookup(self, options: dict[str, Any]) -> type[Component]:
        from dreambooth.plugins import registry

        known = list(self._kinds())
        kind = options.get("kind")
        if not isinstance(kind, str):
            raise PydanticCustomError(
                "slot_no_kind",
                '{slot} needs a "kind"',
                {"slot": self.info.name, "known": known},
            )
        if kind in known:
            return self._kinds()[kind]
        raise PydanticCustomError(
            "slot_kind",
            'unknown {slot} kind "{kind}"',
            {
                "slot": self.info.name,
                "kind": kind,
                "known": known,
                "why": registry().why_missing(self.info.name, kind),
            },
        )

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value, info: value.model_dump(mode=info.mode), info_arg=True
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        from dreambooth.optiondocs import add_docs

        members: list[JsonSchemaValue] = []
        short: list[str] = []
        for kind, cls in sorted(self._kinds().items()):
            cls.model_rebuild()
            members.append(add_docs(cls, handler(cls.__pydantic_core_schema__)))
            if not any(f.is_required() for n, f in cls.model_fields.items() if n != "kind"):
                short.append(kind)
        named: list[JsonSchemaValue] = [{"enum": short, "type": "string"}] if short else []
        return {"anyOf": [*named, *members]}


def component(slot: str, kind: str) -> Any:
    """Return the component of `kind` with its default options."""
    adapter: TypeAdapter[Component] = TypeAdapter(Annotated[Component, Slot(slot)])
    return adapter.validate_python(kind)
