"""Pictures drawn while training: the job's section `samples`, and files of prompts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic_core import PydanticCustomError, core_schema

from dreambooth.component.base import JobPath, Section

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
    from pydantic.json_schema import JsonSchemaValue

Side = Annotated[int, Field(ge=8, le=8192)]
PREVIEWS = ("a photo of {identifier} {class_noun}", "a photo of a {class_noun}")


class SamplePrompt(Section):
    """A prompt with settings of its own; what is left out is the job's."""

    prompt: str = Field(min_length=1)
    """What is drawn; `{identifier}` and `{class_noun}` are filled in."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Seed of its first picture, the next ones count on from it; null: a function of `train.seed`
    and of the prompt's place in the list."""
    size: Side | tuple[Side, Side] | None = None
    """Side of the picture in pixels, or [height, width]."""
    negative: str | None = None
    """What the picture should not show."""
    guidance: float | None = Field(default=None, ge=0.0)
    """Guidance scale."""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """Sampling steps."""

    @property
    def pixels(self) -> tuple[int, int] | None:
        """(height, width) in pixels; None where the job's size is taken."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def options(self) -> dict[str, Any]:
        """Return what replaces options of the sampler."""
        given = {"guidance_scale": self.guidance, "steps": self.steps}
        return {name: value for name, value in given.items() if value is not None}


class PromptEntry:
    """Annotation of an item that is a prompt, or a mapping with a prompt and its settings.

    Its own validator, not a union's: faults then name the key the person wrote.
    """

    @staticmethod
    def validate(value: Any, info: ValidationInfo) -> str | SamplePrompt:
        """Turn what a job says into a text or a `SamplePrompt`."""
        if isinstance(value, SamplePrompt):
            return value
        if isinstance(value, dict):
            if info.mode == "json":
                return SamplePrompt.model_validate_json(json.dumps(value), strict=True)
            return SamplePrompt.model_validate(value)
        if not isinstance(value, str):
            raise PydanticCustomError("prompt_type", "must be a prompt, or a mapping with one")
        if not value:
            raise PydanticCustomError("string_too_short", "must not be empty", {"min_length": 1})
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(_plain, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        SamplePrompt.model_rebuild()
        return {
            "anyOf": [
                {"type": "string", "minLength": 1},
                handler(SamplePrompt.__pydantic_core_schema__),
            ]
        }


def _plain(value: str | SamplePrompt, info: Any) -> Any:
    if isinstance(value, str):
        return value
    return value.model_dump(mode=info.mode, exclude_defaults=True)


Entry = Annotated[str | SamplePrompt, PromptEntry()]
Entries = Annotated[list[Entry], Field(min_length=1)]


def entry_of(value: str | SamplePrompt) -> SamplePrompt:
    """Return an item of a list of prompts in its long form."""
    return SamplePrompt(prompt=value) if isinstance(value, str) else value


class Samples(Section):
    """Pictures drawn before training and while it goes on, from fixed seeds."""

    every: Annotated[int, Field(ge=0)] = 100
    """Draw every so many steps, before the first and after the last; 0 draws none."""
    prompts: Entries = Field(default=list(PREVIEWS))
    """Prompts, or mappings of a prompt with its own `seed`, `size`, `negative`, `guidance` and
    `steps`; `{identifier}` and `{class_noun}` are filled in."""
    prompts_file: JobPath | None = None
    """A YAML file whose `prompts` are taken instead; the run's job.yaml has them written out."""
    per_prompt: Annotated[int, Field(ge=1, le=64)] = 4
    """Pictures a prompt."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    """Pictures drawn at once."""

    @property
    def entries(self) -> list[SamplePrompt]:
        """The prompts in their long form."""
        return [entry_of(value) for value in self.prompts]


class PromptsFile(Section):
    """A file of prompts, for `samples.prompts_file` and `dbt evaluate --prompts`."""

    prompts: Entries
    """Prompts, or mappings of a prompt with its own `seed`, `size`, `negative`, `guidance` and
    `steps`; `{identifier}` and `{class_noun}` are filled in."""
