"""`dbt plugins new`: a package to begin a plugin with."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the package, e.g. my-policies.")
    ],
    slot: Annotated[
        str,
        typer.Option(
            "--slot",
            metavar="SLOT",
            help="What it brings: model, data, prior, freezing, loss, scheduler, sampler, "
            "optimizer, lr_schedule, tracker, metric, finding, exporter, callback, safety, "
            "captioner, masker, or command.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path | None, typer.Option("--dir", help="New or empty folder; NAME here by default.")
    ] = None,
) -> None:
    """Write a plugin's package to begin with.

    It installs, is clean under ruff and mypy's strict mode, works in a job, and has a test: the
    suite of its slot.
    """
    from dreambooth.console import echo
    from dreambooth.plugins.scaffold import package_for, write

    package = package_for(name, slot)
    dest = folder or Path(name)
    for file in write(package, dest.absolute()):
        echo(f"  {dest / file}", indent=2)
    echo(f"next: cd {quote(str(dest))} && pip install -e '.[dev]' && python -m pytest")
