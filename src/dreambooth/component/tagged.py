"""Options that are one of several kinds, told apart by `kind`; the bare name is short for one."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError, core_schema

from dreambooth.component.docs import add_docs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
    from pydantic.json_schema import JsonSchemaValue

    from dreambooth.component.base import Section


class Tagged(ABC):
    """Annotation of a field that takes `{kind: name, ...}`, the bare name, or an instance.

    Error locations point into the mapping the person wrote. Job files (JSON mode) are checked
    strictly; Python values by pydantic's usual rules.
    """

    name: str
    """What is chosen, for messages: `loss`, `adapter method`."""
    base: type[Section]
    """What every kind is a subclass of."""

    @abstractmethod
    def kinds(self) -> Mapping[str, type[Section]]:
        """Return the kinds there are, by name."""

    def why_missing(self, kind: str) -> str:
        """Return why a kind is not there, where that is known."""
        return ""

    def validate(self, value: Any, info: ValidationInfo) -> Section:
        """Turn what a job says into an instance."""
        if isinstance(value, self.base):
            return value
        options: Any = {"kind": value} if isinstance(value, str) else value
        if not isinstance(options, dict):
            raise PydanticCustomError(
                "slot_type",
                '{slot} takes a kind or a mapping with "kind"',
                {"slot": self.name, "known": list(self.kinds())},
            )
        cls = self._lookup(options)
        if info.mode == "json":
            return cls.model_validate_json(json.dumps(options), strict=True, context=info.context)
        return cls.model_validate(options, context=info.context)

    def _lookup(self, options: dict[str, Any]) -> type[Section]:
        known = list(self.kinds())
        kind = options.get("kind")
        if not isinstance(kind, str):
            raise PydanticCustomError(
                "slot_no_kind",
                '{slot} needs a "kind"',
                {"slot": self.name, "known": known},
            )
        if kind in known:
            return self.kinds()[kind]
        raise PydanticCustomError(
            "slot_kind",
            'unknown {slot} kind "{kind}"',
            {"slot": self.name, "kind": kind, "known": known, "why": self.why_missing(kind)},
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
        members: list[JsonSchemaValue] = []
        short: list[str] = []
        for kind, cls in sorted(self.kinds().items()):
            cls.model_rebuild()
            members.append(add_docs(cls, handler(cls.__pydantic_core_schema__)))
            if not any(f.is_required() for n, f in cls.model_fields.items() if n != "kind"):
                short.append(kind)
        named: list[JsonSchemaValue] = [{"enum": short, "type": "string"}] if short else []
        return {"anyOf": [*named, *members]}


class OneOf(Tagged):
    """`Annotated[Method, OneOf("adapter method", Method, Lora, Dora)]`: a fixed set of kinds.

    Each class has `kind: Literal["name"] = "name"`. For sets that plugins extend there are slots.
    """

    def __init__(self, name: str, base: type[Section], *classes: type[Section]) -> None:
        self.name, self.base = name, base
        self._classes = {cls.model_fields["kind"].default: cls for cls in classes}

    def kinds(self) -> Mapping[str, type[Section]]:
        """Return the classes by kind."""
        return self._classes
