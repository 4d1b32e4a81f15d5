"""`dbt validate`: say everything that is wrong with job files, before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.job import Job


def validate(
    jobs: Annotated[list[Path], typer.Argument(metavar="JOB", help="Job files.")],
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override",
            "-o",
            metavar="KEY=VALUE",
            help="Set an option, e.g. -o train.steps=200; paths are relative to the job file.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check job files (and those of other commands, such as a sweep's), all faults at once.

    Keys, types, names, the model, the data, and what the parts need of each other.
    """
    from dreambooth.console import print_error, print_warning
    from dreambooth.errors import EXIT_BAD_JOB
    from dreambooth.helpers.text import json_text, printable, redacted_in
    from dreambooth.jobs.diagnostics import JobErrors
    from dreambooth.plugins import registry
    from dreambooth.process.launcher import require_environment

    require_environment()
    for problem in () if as_json else registry().problems():
        print_warning(problem)
    results: list[dict[str, Any]] = []
    for file in jobs:
        result: dict[str, Any] = {"file": str(file), "ok": True, "errors": []}
        results.append(result)
        try:
            result |= _checked(file, override or ())
        except JobErrors as errors:
            result |= {"ok": False, "errors": [d.as_dict() for d in errors.diagnostics]}
            if not as_json:
                print_error(errors)
        else:
            if not as_json:
                typer.echo(printable(f"{file}: ok: {result['summary']}"))
                for message in result["warnings"]:
                    print_warning(f"{file}: {message}", f"dbt identifier {file} proposes others")
    if as_json:
        typer.echo(json_text(redacted_in(results)))
    if not all(result["ok"] for result in results):
        raise typer.Exit(EXIT_BAD_JOB)


def _checked(file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Check a job, or a file that a plugin's command reads; return its line and warnings."""
    from dreambooth.cli.joining import kind_of
    from dreambooth.errors import JobError
    from dreambooth.jobs import identifiers
    from dreambooth.jobs.loading import check_job

    kind = kind_of(file)
    if kind is None:
        job = check_job(file, overrides)
        return {"summary": summary(job), "warnings": identifiers.warnings(job)}
    if overrides:
        raise JobError(f"{file} is a {kind.name}, and -o is for jobs", "leave -o out")
    return {"summary": kind.check(file), "warnings": []}


def summary(job: Job) -> str:
    """Return a job in one line."""
    from dreambooth.helpers.text import one_line

    model = getattr(job.model, "source", "")
    height, width = job.data.size
    parts = (
        job.name,
        f"{job.subject.identifier} {job.subject.class_noun}",
        f"{job.model.kind}{f' {model}' if model else ''}",
        f"{job.freezing.kind} freezing",
        f"{job.loss.kind} loss",
        f"{job.train.steps} steps of {job.train.batch_size * job.train.accumulation}",
        f"{width} x {height} px",
    )
    return one_line(", ".join(parts))
