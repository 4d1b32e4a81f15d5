"""`dbt identifier`: rare words of one token in the model's own vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def identifier(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="Job file.", show_default=False)],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Proposals shown.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Propose identifiers for a job: rare short words that are one token to its model.

    Also says how the model reads the job's own identifier, and what speaks against it.
    """
    from dreambooth.console import echo, print_warning
    from dreambooth.errors import JobError
    from dreambooth.helpers.text import json_text, one_line
    from dreambooth.interfaces import AUTO
    from dreambooth.jobs import identifiers
    from dreambooth.jobs.loading import load_job

    loaded = load_job(job)
    vocabulary = loaded.model.vocabulary()
    if vocabulary is None:
        raise JobError(
            f'model kind "{loaded.model.kind}" does not say how it splits text',
            "choose a rare short word yourself",
        )
    words = identifiers.proposals(vocabulary)[:count]
    chosen = identifiers.settled(loaded).subject.identifier
    result: dict[str, Any] = {
        "identifier": chosen,
        "auto": loaded.subject.identifier == AUTO,
        "tokens": vocabulary.split(chosen),
        "warnings": identifiers.warnings(loaded),
        "proposals": words,
    }
    if as_json:
        typer.echo(json_text(result))
        return
    if identifiers.learns_word(loaded):
        typer.echo(f'"{one_line(chosen)}" gets tokens of its own ({loaded.freezing.kind} freezing)')
        return
    tokens = result["tokens"]
    one = "one token" if len(tokens) == 1 else f"{len(tokens)} tokens: {' + '.join(tokens)}"
    said = f'auto: "{chosen}"' if result["auto"] else f'"{chosen}"'
    typer.echo(one_line(f"{said}, {one}"))
    for message in result["warnings"]:
        print_warning(message)
    echo(f"rare words of one token: {', '.join(words) or 'none'}", indent=2)
