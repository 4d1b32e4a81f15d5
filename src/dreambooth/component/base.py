"""The base of everything a plugin brings: a frozen, strictly checked set of typed options."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationInfo,
)

from dreambooth.component.docs import add_docs
from dreambooth.component.door import Called

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

    from dreambooth.component.model_info import ModelInfo


Location = tuple[str | int, ...]
"""Where in a job: keys and list indices from the top, e.g. `("trackers", 0, "kind")`."""

AnyJob: TypeAlias = Any
"""The job a component is part of, in the signatures of the bases. `dreambooth.Job` is made of
components, so it lies above all of them; a plugin writes `job: Job` and has its options typed."""


def resolve_path(path: Path, info: ValidationInfo) -> Path:
    """Read a relative path as relative to the job file (validation context `base`).

    `ValueError` for the home of a user there is not, for a name that no text file can hold, and
    for one with control characters.
    """
    if found := _CONTROL.search(str(path)):
        raise ValueError(
            f"there is a {ascii(found[0])[1:-1]} in the path: in double quotes \\t, \\n, \\r, \\b "
            "and the like mean something else; use single quotes or forward slashes"
        )
    try:
        path = path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder for {path.parts[0]}") from None
    base = (info.context or {}).get("base")
    if base is not None:
        path = Path(base, path).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {str(path)!a} is not UTF-8: rename the folder") from None
    return path


def expand_variables(text: str) -> str:
    """Fill in `$NAME` and `${NAME}` from the environment; `$$` is a dollar sign.

    `ValueError` for a variable that is not set, or empty.
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match["plain"] or match["braced"]
        if found := os.environ.get(name):  # an empty one would make `$OUT/runs` a folder of /
            return found
        raise ValueError(f'the environment variable "{name}" is not set; $$ is a plain dollar sign')

    return _VARIABLE.sub(value, text)


def escape_variables(text: str) -> str:
    """Return a text that `expand_variables` turns back into `text`."""
    return text.replace("$", "$$")


_CONTROL = re.compile("[\x00-\x1f\x7f]")
_VARIABLE = re.compile(r"\$\$|\$(?P<plain>[A-Za-z_][A-Za-z0-9_]*)|\$\{(?P<braced>[^{}]*)\}")


def _path_text(value: Any) -> Any:
    # JSON mode, in which job files are checked, takes texts only: a default that is a Path too.
    return str(value) if isinstance(value, Path) else _expanded(value)


def _expanded(value: Any) -> Any:
    return expand_variables(value) if isinstance(value, str) else value


JobPath = Annotated[
    Path,
    BeforeValidator(_path_text),
    AfterValidator(resolve_path),
    PlainSerializer(lambda path: escape_variables(str(path)), str, when_used="json"),
]
"""A path option: `~`, `$NAME` and `${NAME}` are expanded in a text (a `Path` is taken as it is), a
relative path starts at the job file's folder."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a job that only shows when its parts are looked at together.

    `at` is the location in the job (`("scheduler", "zero_terminal_snr")`); the file, line and
    column are added where they are known.
    """

    at: Location
    message: str
    hint: str = ""


class Section(BaseModel):
    """Typed options: frozen, unknown keys refused, attribute docstrings become descriptions."""

    short_for: ClassVar[str] = ""
    """The option that a bare value in the section's place means, where its field takes one."""
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        defer_build=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the docstrings below options as their descriptions."""
        result = handler(schema)
        add_docs(cls, handler.resolve_ref_schema(result))
        return result


class Component(Section, Called):
    """One installable part of a trainer: its options as fields, its behaviour as methods.

    A subclass sets `kind: Literal["my_kind"] = "my_kind"`, adds options as typed fields with a
    docstring below each, and implements the methods of its slot's base (`dreambooth.interfaces`).
    It keeps no state of a run: what must be kept is returned by its `open()`, and the engine
    holds on to that. Import torch inside methods (or under `TYPE_CHECKING`), so that `dbt
    validate` and the schema stay fast.
    """

    kind: str

    def check(self, job: AnyJob, info: ModelInfo | None) -> Iterable[Problem]:
        """Say what is wrong with this component in this job, before anything is loaded.

        Called by `dbt validate` and at the start of each run; must not import torch. `info`
        describes the model, or is None where it could not be read (that is reported apart).
        Locations are relative to the whole job. The default finds nothing.
        """
        return ()

    def settled(self, describe: Callable[[], ModelInfo]) -> Self:
        """Return this component with what it leaves to the model written out.

        Called before a job is checked, compared or run; `describe` reads the model's JSON files,
        and raises where it cannot. An option that says `auto` becomes what it comes to, so that a
        run's job says all of it; the default has nothing to settle and returns itself.
        """
        return self

    def key(self) -> dict[str, Any]:
        """The options as plain JSON data: what goes into cache keys and manifests."""
        return self.model_dump(mode="json")
