"""Train the embedded base model from openly licensed drawings.

    python -m emoji_recipe [--stage NAME] [--minutes N]

Every stage goes on from where it stopped, to the bit; without `--stage` all of them run in order.
`unpack` goes on from the base that ships.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dreambooth.errors import JobError, UserError
from emoji_recipe.settings import BASES, HANDOVER, STAGES, RecipeSettings

TRAINED = ("autoencoder", "clip", "denoiser")


def run_stage(name: str, settings: RecipeSettings, minutes: float | None) -> bool:
    """Run one stage; return whether it is done. torch is imported here, not with the program."""
    import torch

    torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("high")  # of a card: TF32 in the optimiser's products
    if name in HANDOVER:
        handover = importlib.import_module("emoji_recipe.handover")
        getattr(handover, name)(settings)
        return True
    module = importlib.import_module(f"emoji_recipe.{'words' if name == 'data' else name}")
    if name in TRAINED:
        done: bool = module.train(settings, minutes)
        return done
    module.run(settings)
    return True


def build_settings(values: dict[str, Any], config: Path | None) -> RecipeSettings:
    """Join the settings file and the options.

    Raises:
        JobError: a name or value is wrong.
    """
    from pydantic import ValidationError

    try:
        merged: dict[str, Any] = json.loads(config.read_text()) if config else {}
        merged |= {name: value for name, value in values.items() if value is not None}
        return RecipeSettings.model_validate(merged)
    except (ValidationError, OSError, ValueError) as error:
        raise JobError(f"settings: {error}", "See settings.py for the names.") from error


def main(
    stage: Annotated[
        str | None,
        typer.Option(help="|".join((*STAGES, *HANDOVER)) + "; without it: all but the last"),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Save and leave after this long; the next call goes on from there."),
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of the training state.")] = None,
    npm: Annotated[Path | None, typer.Option(help="Folder with the package's .tgz file.")] = None,
    out: Annotated[Path, typer.Option(help="Where the model is written.")] = BASES,
    seed: Annotated[int | None, typer.Option(help="The run's one seed.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with any other settings.")] = None,
) -> None:
    """Train the embedded base model."""
    try:
        if stage is not None and stage not in (*STAGES, *HANDOVER):
            told = ", ".join((*STAGES, *HANDOVER))
            raise JobError(f"no stage {stage!r}", f"Stages: {told}.")
        values = {"work": work, "npm": npm, "out": out, "seed": seed, "threads": threads}
        settings = build_settings(values, config)
        for name in [stage] if stage else STAGES:
            if not run_stage(name, settings, minutes):
                typer.echo(f"{name} is not done: run the same command again to go on")
                break
    except UserError as error:
        typer.echo(f"error: {error.message}\n  {error.hint}", err=True)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    typer.run(main)
