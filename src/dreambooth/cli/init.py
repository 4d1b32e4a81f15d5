"""`dbt init`: a commented job for a folder of pictures, or an example to start with."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dreambooth.interfaces import Model, ModelInfo
    from dreambooth.starter import Starter

_NAME_HINT = "Use letters, digits, dot, dash and underscore; at most 100."
_WORD_HINT = "For example: --identifier ohwx --class-noun dog."
EMOJI, TINY = "builtin:emoji-64", "builtin:tiny"
JOB, SCHEMA, PICTURES = "job.yaml", "job.schema.json", "pictures"


class Example(StrEnum):
    """Subjects whose pictures come with the trainer."""

    fox = "fox"
    octopus = "octopus"


def init(
    directory: Annotated[Path, typer.Argument(help="Where to write the job.")] = Path(),
    pictures: Annotated[
        Path | None, typer.Option(help="Folder with 3-5 pictures of your subject.")
    ] = None,
    identifier: Annotated[str, typer.Option(help="Rare token that will name it.")] = "ohwx",
    class_noun: Annotated[
        str | None, typer.Option(help="What it is, in one noun: dog, backpack, ...")
    ] = None,
    example: Annotated[
        Example | None, typer.Option(help="Also write example pictures to train on.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Diffusers folder, .safetensors file or hub id; the small built-in one by default."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Write a commented job.yaml.

    For a folder of your pictures, or with --example for pictures that come with the trainer.
    """
    from dreambooth.errors import JobError
    from dreambooth.files import write_bytes
    from dreambooth.schema import schema_text
    from dreambooth.starter import job_text

    if example and pictures:
        raise JobError("--example brings its own pictures", "Leave out --pictures or --example.")
    directory = directory.expanduser()
    noun = class_noun or (example.value if example else _ask_class_noun())
    files = _example_files(example.value) if example else {}
    folder = directory / PICTURES if pictures is None else pictures.expanduser()
    chosen, about = (model, []) if model else _default_model(example is not None)
    starter, notes = _starter(
        directory, folder, example is not None, identifier, noun, chosen, name
    )
    notes = [*about, *notes]

    files[SCHEMA] = schema_text().encode()
    files[JOB] = job_text(starter).encode()  # last: a job that is there is complete
    _refuse_overwriting(directory, files, force)
    if pictures is None:
        folder.mkdir(parents=True, exist_ok=True)
    for relative, data in files.items():
        write_bytes(directory / relative, data)
    _say(directory, folder, starter, notes)


def _ask_class_noun() -> str:
    from dreambooth.errors import JobError

    if sys.stdin.isatty():
        return str(typer.prompt("What is the subject, in one plain noun (dog, backpack, ...)?"))
    raise JobError(
        "what is the subject? The right class noun matters more than any other option",
        "Add --class-noun, e.g. --class-noun dog.",
    )


def _default_model(example: bool) -> tuple[str, list[str]]:
    """Return the built-in model this installation has, and what to know about it."""
    from dreambooth.errors import UserError

    try:
        _describe(EMOJI)
    except UserError as error:
        return TINY, [f"{error.message}; {TINY} has random weights and draws noise"]
    note = f"{EMOJI} draws small emoji, not photographs: quick to try; --model takes a real model"
    return EMOJI, [] if example else [note]


def _describe(model: str) -> ModelInfo:
    from dreambooth.plugins import registry

    cls = registry().kinds("model")["stable_diffusion"]
    return cast("Model", cls.model_validate({"source": model})).describe()


def _example_files(example: str) -> dict[str, bytes]:
    """Return an example's pictures and captions by their place below the job."""
    from importlib.resources import files

    folder = files("dreambooth") / "examples"
    listed = sorted((folder / example).iterdir(), key=lambda entry: entry.name)
    found = {f"{PICTURES}/{entry.name}": entry.read_bytes() for entry in listed}
    return {**found, "LICENSE-pictures.txt": (folder / "LICENSE").read_bytes()}


def _starter(
    directory: Path,
    folder: Path,
    example: bool,
    identifier: str,
    noun: str,
    model: str,
    name: str | None,
) -> tuple[Starter, list[str]]:
    """Choose the job's values; also return what the person should know about them."""
    from dreambooth.starter import EXAMPLE_COUNT, Starter, pick_resolution, run_name

    name = name or run_name(identifier, noun)
    _check_words(name, identifier, noun)
    own = folder == directory / PICTURES
    sides = [] if example else _sides(folder, must_exist=not own)
    native, multiple, notes = _native_resolution(model)
    resolution = pick_resolution(sides, native, multiple)
    if resolution < native:
        notes.append(f"small pictures: resolution {resolution}, not the model's own {native}")
    path = PICTURES if own else _from(directory, folder)
    count = EXAMPLE_COUNT if example else len(sides)
    source = _from(directory, Path(model)) if Path(model).exists() else model
    return Starter(name, identifier, noun, path, count, resolution, source), notes


def _check_words(name: str, identifier: str, noun: str) -> None:
    """Raise `JobError` where a job would refuse these."""
    from pydantic import ValidationError

    from dreambooth.errors import JobError
    from dreambooth.job import Job

    subject = {"identifier": identifier, "class_noun": noun}
    try:
        Job.model_validate({"name": name, "subject": subject})
    except ValidationError as error:
        # What else a job needs is not chosen yet.
        for fault in error.errors():
            option = str(fault["loc"][-1]).replace("_", "-")
            if fault["loc"] == ("name",):
                raise JobError(f"--name: {name!r} is no name for a folder", _NAME_HINT) from None
            if fault["loc"][0] == "subject":
                raise JobError(f"--{option}: {fault['msg']}", _WORD_HINT) from None


def _native_resolution(model: str) -> tuple[int, int, list[str]]:
    """Return the model's own side in pixels, what sides are multiples of, and notes."""
    from dreambooth.errors import UserError
    from dreambooth.starter import preset_for

    preset = preset_for(model)
    try:
        described = _describe(model)
    except UserError as error:
        note = f"{error.message}; {preset.resolution} pixels assumed"
        return preset.resolution, preset.multiple, [note]
    return described.resolution, max(preset.multiple, described.latent.multiple), []


def _sides(folder: Path, must_exist: bool) -> list[int]:
    """Return the shorter sides of a folder's pictures; `JobError` where there is none."""
    from dreambooth.errors import JobError
    from dreambooth.starter import picture_sides

    if not folder.is_dir():
        if not must_exist:
            return []
        raise JobError(f"--pictures: {folder} is no folder", "Name the folder that holds them.")
    sides = picture_sides(folder)
    if must_exist and not sides:
        raise JobError(
            f"--pictures: no picture directly in {folder}", "JPEG, PNG and WebP are read."
        )
    return sides


def _from(directory: Path, path: Path) -> str:
    """Write a path as seen from the job: relative while it stays near, else absolute."""
    relative = os.path.relpath(path.absolute(), directory.absolute())
    far = relative.startswith(os.path.join("..", "..", ".."))
    return path.absolute().as_posix() if far else Path(relative).as_posix()


def _refuse_overwriting(directory: Path, files: Mapping[str, bytes], force: bool) -> None:
    """Raise `JobError` if a file with other content is in the way."""
    from dreambooth.errors import JobError

    taken = [
        name
        for name, data in files.items()
        if (directory / name).exists() and (directory / name).read_bytes() != data
    ]
    if taken and not force:
        raise JobError(
            f"{directory / taken[0]} exists already"
            + (f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""),
            "Choose another folder, or overwrite with --force.",
        )


def _say(directory: Path, folder: Path, starter: Starter, notes: list[str]) -> None:
    """Say what was written and what to do next."""
    from dreambooth.printable import one_line

    def say(text: str) -> None:
        typer.echo(one_line(text))

    job = directory / JOB
    say(f"wrote    {job} and {SCHEMA} beside it")
    say(f"pictures {starter.count} in {folder}, trained at {starter.resolution} px")
    for note in notes:
        say(f"note     {note}")
    if starter.count == 0:
        say(f"next     put 3-5 pictures of your {starter.class_noun} into {folder}")
        say(f"then     dbt run {quote(str(job))}")
    else:
        say(f"next     dbt run {quote(str(job))}")
