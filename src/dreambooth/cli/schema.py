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
    of: Annotated[
        str | None,
        typer.Option("--of", metavar="NAME", help="The schema of another file, e.g. sweep."),
    ] = None,
) -> None:
    """Print the JSON Schema of a job.

    The options of every installed plugin are in it, so an editor can check and complete them.
    """
    from dreambooth.jobs.schema import prompts_schema, schema_text, write

    if of is not None:
        text = _of(of)
    else:
        text = schema_text(prompts_schema()) if prompts else schema_text()
    if output is None:
        typer.echo(text, nl=False)
    else:
        write(output, text)


def _of(name: str) -> str:
    """Return the schema of a file that a plugin's command reads; `JobError` where there is none."""
    from dreambooth.cli.joining import kinds_of_files
    from dreambooth.errors import JobError
    from dreambooth.helpers.text import did_you_mean
    from dreambooth.jobs.schema import file_schema, schema_text

    kinds = {kind.name: kind for kind in kinds_of_files().values()}
    if name not in kinds:
        raise JobError(f'no command reads a file called "{name}"', did_you_mean(name, list(kinds)))
    return schema_text(file_schema(kinds[name].model(), f"DreamBooth {name}"))
