"""`dbt schema`: the JSON Schema of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead.")
    ] = None,
) -> None:
    """Print the JSON Schema of a job.

    The options of every installed plugin are in it, so an editor can check and complete them.
    """
    from dreambooth.jobs.schema import schema_text, write

    if output is None:
        typer.echo(schema_text(), nl=False)
    else:
        write(output)
