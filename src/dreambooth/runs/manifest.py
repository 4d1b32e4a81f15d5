"""What is read back from a run's manifest, and of which kind it must be."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"{name!r} leads out of the run's folder")
    return name


class _Record(BaseModel):
    """What must be so; more may stand there."""

    model_config = ConfigDict(strict=True, extra="allow")


class TrainRecord(_Record):
    """The options that decide how many rows a step has."""

    batch_size: int
    accumulation: int


class JobRecord(_Record):
    """The resolved job."""

    train: TrainRecord


class PluginRecord(_Record):
    """A plugin that took part."""

    name: str
    version: str | None


class KeptRecord(_Record):
    """The step that was kept as the best."""

    why: str = ""


class ResultRecord(_Record):
    """What a finished run left."""

    steps: int
    checks: list[str]
    scalars: dict[str, float]
    stop: str = ""
    for_good: bool = False
    kept: KeptRecord | None = None
    files: dict[Annotated[str, AfterValidator(_inside)], int] = Field(default={})
    """Bytes by name, relative to the run's folder."""


class MadeRecord(_Record):
    """How an entry of the store was made."""

    batch: int = Field(ge=1)
    threads: int | None = Field(default=None, ge=1, le=1024)


class PinRecord(_Record):
    """An entry of the store that the run used."""

    made: MadeRecord
    rows: int = Field(ge=0)
    digest: str


class Manifest(_Record):
    """What a later life of the run goes by."""

    job: JobRecord | None = None
    processes: int = Field(default=1, ge=1)
    machine: dict[str, Any] = Field(default={})
    model: dict[str, str] = Field(default={})
    images: dict[str, str] = Field(default={})
    captions: dict[str, int] = Field(default={})
    schedule: dict[str, str] | None = None
    inputs: dict[str, str] = Field(default={})
    plugins: list[PluginRecord] = Field(default=[])
    store: list[str] | dict[str, PinRecord | dict[str, None]] = Field(default=[])
    """A list in runs that began before entries were pinned."""
    result: ResultRecord | None = None


def checked(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest as it is; `ValueError` names the first thing of another kind."""
    try:
        Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where} is damaged: {first['msg']}") from None
    return manifest


def checked_pins(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the store's entries a manifest pins, by name; those it only names are left out."""
    store = manifest.get("store")
    pins = store if isinstance(store, dict) else {}
    return {name: pin for name, pin in pins.items() if pin}
