"""`dbt export`: a trained run in another file format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dreambooth.engine.results.card import Export

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, or its job file.", show_default=False)
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help="diffusers, lora, kohya, peft, merged, single_file, embedding, or a plugin's.",
        show_default=False,
    ),
]
Dest = Annotated[
    Path | None,
    typer.Option("--dest", help="New or empty folder; exports/FORMAT of the run by default."),
]
Step = Annotated[
    int | None,
    typer.Option(
        "--step",
        min=1,
        metavar="N",
        help="A training step that is kept; into exports/FORMAT-step-N.",
    ),
]


def export(
    run: Run,
    kind: Format,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="KEY=VALUE", help="An option of the format: -o dtype=fp16."
        ),
    ] = None,
    dest: Dest = None,
    step: Step = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Read the file back as another program would, and compare what it draws.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a trained run in another file format, without training.

    Takes the newest checkpoint (the best one, where the job exports that), also of a run that was
    interrupted. The live model and the file draw the same latents: a difference above what the
    format allows is a failure (exit code 1); half precision is reported.

    Formats: diffusers (a folder), merged (an adapter folded into one), single_file (the original
    layout: A1111, Forge, ComfyUI), lora (diffusers), kohya (LoRA for A1111, Forge, ComfyUI), peft
    (every method), embedding (a learned word). `dbt plugins show FORMAT` lists the options of one.
    """
    from dreambooth.cli.display.progress import reporter_for
    from dreambooth.console import say, stderr, stdout
    from dreambooth.helpers.text import json_text, one_line
    from dreambooth.jobs.named import named_exporter
    from dreambooth.process import only_displays
    from dreambooth.runs.finding import run_of

    if not as_json:
        only_displays()
    folder, job = run_of(run)
    exporter = named_exporter(folder.job, job, kind, option or ())
    # From here on torch is needed; the checks before answered at once.
    from dreambooth.engine.results.exports import export_run

    console = stdout()
    reporter = reporter_for(stderr() if as_json else console)
    made, source = export_run(
        folder,
        job,
        exporter,
        reporter,
        dest=dest.absolute() if dest else None,
        check=check,
        step=step,
    )
    if as_json:
        typer.echo(json_text(described(made, source)))
        return
    for line in told(made, source):
        say(console, one_line(line), indent=9)


def described(made: Export, source: str) -> dict[str, Any]:
    """Return an export as plain data."""
    from dreambooth.files import sizes

    return {
        "format": made.kind,
        "folder": str(made.folder),
        "weights": source,
        "files": sizes(made.folder),
        "checked": bool(made.check.message),
        "message": made.check.message,
        "figures": dict(made.check.figures),
    }


def told(made: Export, source: str) -> list[str]:
    """Return what was written and how far it is from the live model, a line each."""
    from dreambooth.helpers.units import file_size, folder_size, shown_path

    size = file_size(folder_size(made.folder))
    lines = [f"{made.kind:8} {shown_path(made.folder)} ({size}), from {source}"]
    if not made.check.message:
        return [*lines, "checked  no: leave --no-check out to compare it with the live model"]
    figures = made.check.figures
    names = {
        "text": "text embedding",
        "denoiser": "prediction at three timesteps",
        "latents": "drawn latents",
    }
    lines.append(f"checked  {made.check.message}")
    lines += [
        f"         {label}: {figures[name]:.1e} of its standard deviation"
        for name, label in names.items()
        if name in figures
    ]
    return [*lines, f"card     {shown_path(made.folder / 'README.md')}"]
