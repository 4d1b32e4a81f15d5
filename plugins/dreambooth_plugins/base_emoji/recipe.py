"""Train the embedded base model from openly licensed emoji.

    python -m dreambooth_plugins.base_emoji.recipe [--stage data|vae|clip|unet|check] [--minutes N]

Every stage goes on from where it stopped; without `--stage` all of them run in order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dreambooth.errors import JobError, UserError
from dreambooth_plugins.base_emoji.settings import HERE, STAGES, RecipeSettings


def run_stage(name: str, settings: RecipeSettings, replan: bool) -> None:
    """Run one stage. torch is imported here, not with the command line."""
    import importlib

    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    module = importlib.import_module(f"dreambooth_plugins.base_emoji.{name}")
    if name in {"data", "check"}:
        module.run(settings)
    else:
        module.train(settings, replan)


def build_settings(
    values: dict[str, Any], config: Path | None, stage: str | None, minutes: float | None
) -> RecipeSettings:
    """Join the settings file, the options and the minutes (of one stage, or shared by all)."""
    from pydantic import ValidationError

    merged: dict[str, Any] = json.loads(config.read_text()) if config else {}
    merged |= {name: value for name, value in values.items() if value is not None}
    try:
        settings = RecipeSettings.model_validate(merged)
    except ValidationError as error:
        raise JobError(f"settings: {error}", "See settings.py for the names.") from error
    if minutes is None:
        return settings
    planned = {name: getattr(settings, name).minutes for name in ("vae", "clip", "unet")}
    share = minutes / (planned.get(stage) or sum(planned.values())) if stage else None
    share = minutes / sum(planned.values()) if share is None else share
    update = {
        name: getattr(settings, name).model_copy(update={"minutes": value * share})
        for name, value in planned.items()
    }
    return settings.model_copy(update=update)


def main(
    stage: Annotated[str | None, typer.Option(help="|".join(STAGES) + "; without it: all")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time of the stage, or of all stages together.")
    ] = None,
    replan: Annotated[
        bool, typer.Option(help="A stage that was begun ends this many minutes from now.")
    ] = False,
    work: Annotated[Path | None, typer.Option(help="Folder of the training state.")] = None,
    npm: Annotated[Path | None, typer.Option(help="Folder with the packages' .tgz files.")] = None,
    out: Annotated[Path, typer.Option(help="Where the model is written.")] = HERE,
    seed: Annotated[int | None, typer.Option(help="The run's one seed.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with any other settings.")] = None,
) -> None:
    """Train the embedded base model."""
    try:
        if stage is not None and stage not in STAGES:
            raise JobError(f"no stage {stage!r}", f"Stages: {', '.join(STAGES)}.")
        values = {"work": work, "npm": npm, "out": out, "seed": seed, "threads": threads}
        settings = build_settings(values, config, stage, minutes)
        for name in [stage] if stage else STAGES:
            run_stage(name, settings, replan)
    except UserError as error:
        typer.echo(f"error: {error.message}\n  {error.hint}", err=True)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    typer.run(main)
