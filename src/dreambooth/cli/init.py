"""`dbt init`: a commented job for a folder of pictures, or an example to start with."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dreambooth.cli.starter import Starter
    from dreambooth.interfaces import Model, ModelInfo

_NAME_HINT = "Use letters, digits, dot, dash and underscore; at most 100."
_WORD_HINT = "For example: --identifier ohwx --class-noun dog."
EMOJI, TINY = "builtin:emoji-64", "builtin:tiny"
JOB, SCHEMA, PICTURES = "job.yaml", "job.schema.json", "pictures"
_LORA = typer.Option("--lora/--no-lora", help="Train a LoRA, or the model (as usual for it).")
Adapter = Annotated[bool | None, _LORA]


class Example(StrEnum):
    """Subjects whose pictures come with the trainer."""

    fox = "fox"
    octopus = "octopus"


def init(
    directory: Annotated[Path, typer.Argument(help="Where to write the job.")] = Path(),
    pictures: Annotated[
        Path | None, typer.Option(help="Folder with 3-5 pictures of your subject.")
    ] = None,
    identifier: Annotated[
        str,
        typer.Option(help="Rare word that will name it; auto chooses one that suits the model."),
    ] = "auto",
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
    config: Annotated[
        str | None,
        typer.Option(help="For a .safetensors file that does not tell: see model.config."),
    ] = None,
    lora: Adapter = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; the directory's by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Write a commented job.yaml.

    For a folder of your pictures, or with --example for pictures that come with the trainer.
    """
    from dreambooth.cli.starter import job_text, run_name
    from dreambooth.errors import JobError
    from dreambooth.jobs.schema import schema_text

    if example and pictures:
        raise JobError("--example brings its own pictures", "Leave out --pictures or --example.")
    directory = directory.expanduser()
    noun = class_noun or (example.value if example else _ask_class_noun())
    files = _example_files(example.value) if example else {}
    folder = directory / PICTURES if pictures is None else pictures.expanduser()
    chosen, about = (model, []) if model else _default_model(example is not None)
    name = name or run_name(directory, noun)
    _check_words(name, identifier, noun)
    starter, notes = _starter(directory, folder, example is not None, noun, chosen, config)
    lora = starter.numbers.lora if lora is None else lora
    starter = replace(starter, name=name, identifier=identifier, lora=lora)

    files[SCHEMA] = schema_text().encode()
    files[JOB] = job_text(starter).encode()  # last: a job that is there is complete
    _refuse_overwriting(directory, files, force)
    if pictures is None:
        folder.mkdir(parents=True, exist_ok=True)
    _write(directory, files)
    _say(directory, folder, starter, [*about, *notes])


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    from dreambooth.files import write_bytes

    for relative, data in files.items():
        write_bytes(directory / relative, data)


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


def _describe(model: str, config: str | None = None) -> ModelInfo:
    from dreambooth.plugins import registry

    named = {"source": model, "config": config}
    chosen = registry().kinds("model")["auto"].model_validate(named)
    return cast("Model", chosen).describe()


def _example_files(example: str) -> dict[str, bytes]:
    """Return an example's pictures and captions by their place below the job."""
    from importlib.resources import files

    folder = files("dreambooth.cli") / "examples"
    listed = sorted((folder / example).iterdir(), key=lambda entry: entry.name)
    found = {f"{PICTURES}/{entry.name}": entry.read_bytes() for entry in listed}
    return {**found, "LICENSE-pictures.txt": (folder / "LICENSE").read_bytes()}


def _starter(
    directory: Path, folder: Path, example: bool, noun: str, model: str, config: str | None
) -> tuple[Starter, list[str]]:
    """Choose the job's values; also return what the person should know about them."""
    from dreambooth.cli.starter import EXAMPLE_COUNT, Starter, pick_resolution

    own = folder == directory / PICTURES
    sides = [] if example else _sides(folder, must_exist=not own)
    native, multiple, described, notes = _native(model, config)
    resolution = pick_resolution(sides, native, multiple)
    if resolution < native:
        notes.append(f"small pictures: resolution {resolution}, not the model's own {native}")
    path = PICTURES if own else _from(directory, folder)
    count = EXAMPLE_COUNT if example else len(sides)
    source, config = str(_as_seen_from(directory, model)), _as_seen_from(directory, config)
    usual = (described.guidance_default, described.usual) if described else ()
    return Starter("", "", noun, path, count, resolution, source, config, *usual), notes


def _as_seen_from(directory: Path, named: str | None) -> str | None:
    """Return how the job names a file or folder; what is neither stays as it is."""
    path = Path(named or "").expanduser()
    return _from(directory, path) if named and path.exists() else named


def _check_words(name: str, identifier: str, noun: str) -> None:
    """Raise `JobError` where a job would refuse these, and for an identifier of several words."""
    from pydantic import ValidationError

    from dreambooth.errors import JobError
    from dreambooth.job import Job

    if len(identifier.split()) > 1:
        message = f"--identifier: {identifier!r} is more than one word"
        raise JobError(
            message, "One rare word, or auto; what the subject is goes into --class-noun."
        )
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


def _native(model: str, config: str | None) -> tuple[int, int, ModelInfo | None, list[str]]:
    """Return the model's own side, what sides are multiples of, what it is (None where its numbers
    are those of its size), and notes.

    `JobError` for a model on this machine that a job cannot train; one of the hub may be out of
    reach for now.
    """
    from dreambooth.cli.starter import preset_for
    from dreambooth.errors import JobError, UserError

    preset = preset_for(model)
    try:
        described = _describe(model, config)
    except UserError as error:
        if _is_here(model):
            hint = error.hint.partition(", or model.prediction")[0]
            hint = hint.replace("set model.config to", "add --config")
            hint = hint.replace("in model.config", "with --config")
            raise JobError(f"--model: {error.message}", hint) from None
        note = f"{error.message}; {preset.resolution} pixels assumed"
        return preset.resolution, preset.multiple, None, [note]
    multiple = max(preset.multiple, described.latent.multiple)
    known = None if model.startswith("builtin:") else described
    return described.resolution, multiple, known, []


def _is_here(model: str) -> bool:
    """Say whether a model is meant to lie on this machine: not one of the hub."""
    path = Path(model).expanduser()
    named_as_path = path.is_absolute() or model[:1] in "~.$" or len(path.parts) != 2
    return path.exists() or named_as_path or bool(path.suffix in {".safetensors", ".ckpt"})


def _sides(folder: Path, must_exist: bool) -> list[int]:
    """Return the shorter sides of a folder's pictures; `JobError` where there is none."""
    from dreambooth.cli.starter import picture_sides
    from dreambooth.errors import JobError

    if not folder.is_dir():
        if not must_exist:
            return []
        raise JobError(f"--pictures: {folder} is no folder", "Name the folder that holds them.")
    sides = picture_sides(folder)
    if must_exist and not sides:
        hint = _nested(folder) or "JPEG, PNG and WebP are read."
        raise JobError(f"--pictures: no picture directly in {folder}", hint)
    return sides


def _nested(folder: Path) -> str:
    """Say which folder inside holds pictures; nothing where none does."""
    from dreambooth.cli.starter import picture_sides

    below = [path for path in sorted(folder.rglob("*"))[:1000] if path.is_dir()]
    counts = {path: len(picture_sides(path)) for path in below if not path.name.startswith(".")}
    if not any(counts.values()):
        return ""
    best = max(counts, key=lambda path: counts[path])
    more = " (one subject a job)" if sum(map(bool, counts.values())) > 1 else ""
    return f"{best} holds {counts[best]}: name that folder{more}."


def _from(directory: Path, path: Path) -> str:
    """Write a path as seen from the job: relative while it stays near, else absolute."""
    from dreambooth.component import escape_variables

    relative = os.path.relpath(path.absolute(), directory.absolute())
    far = relative.startswith(os.path.join("..", "..", ".."))
    return escape_variables((path.absolute() if far else Path(relative)).as_posix())


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
    from dreambooth.console import echo
    from dreambooth.helpers.text import one_line

    def say(text: str) -> None:
        echo(one_line(text), indent=9)

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
