"""`dbt schema`: the JSON Schema of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead.")
    ] = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="The schema of a file of prompts instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of a job.

    The options of every installed plugin are in it, so an editor can check and complete them.
    """
    from dreambooth.jobs.schema import prompts_schema, schema_text, write

    text = schema_text(prompts_schema()) if prompts else schema_text()
    if output is None:
        typer.echo(text, nl=False)
    else:
        write(output, text)
