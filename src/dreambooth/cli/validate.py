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
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Also count memory (takes seconds): does each job fit, and which options would?",
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
    from dreambooth.helpers.units import read_bytes
    from dreambooth.jobs.diagnostics import JobErrors
    from dreambooth.plugins import registry
    from dreambooth.process.launcher import require_environment

    require_environment()
    limit = None if memory is None else read_bytes("--memory", memory)
    for problem in () if as_json else registry().problems():
        print_warning(problem)
    results: list[dict[str, Any]] = []
    for file in jobs:
        result: dict[str, Any] = {"file": str(file), "ok": True, "errors": []}
        results.append(result)
        try:
            job = _checked(file, override or (), limit is not None, result)
        except JobErrors as errors:
            result |= {"ok": False, "errors": [d.as_dict() for d in errors.diagnostics]}
            if not as_json:
                print_error(errors)
        else:
            if not as_json:
                typer.echo(printable(f"{file}: ok: {result['summary']}"))
                for message in result["warnings"]:
                    print_warning(f"{file}: {message}", f"dbt identifier {file} proposes others")
            if limit is not None and job is not None:
                _hold_against(job, limit, result, quiet=as_json)
    if as_json:
        typer.echo(json_text(redacted_in(results)))
    if not all(result["ok"] for result in results):
        raise typer.Exit(EXIT_BAD_JOB)


def _checked(
    file: Path, overrides: Sequence[str], memory: bool, result: dict[str, Any]
) -> Job | None:
    """Check a job and return it, or a file that a plugin's command reads; add line and warnings."""
    from dreambooth.cli.joining import kind_of
    from dreambooth.errors import JobError
    from dreambooth.jobs import identifiers
    from dreambooth.jobs.loading import check_job

    kind = kind_of(file)
    if kind is None:
        job = check_job(file, overrides)
        result |= {"summary": summary(job), "warnings": identifiers.warnings(job)}
        return job
    if overrides or memory:
        raise JobError(f"{file} is a {kind.name}: -o and --memory are for jobs", "leave them out")
    result |= {"summary": kind.check(file), "warnings": []}
    return None


def _hold_against(job: Job, limit: int, result: dict[str, Any], *, quiet: bool) -> None:
    """Count the job's memory; one that does not fit is none that can be run there."""
    from dreambooth.cli.display.fit import fit_data, fit_lines
    from dreambooth.cli.display.progress import reporter_for
    from dreambooth.console import stdout
    from dreambooth.engine.cost.fitting import held_against
    from dreambooth.engine.reporting import Quiet
    from dreambooth.helpers.text import printable

    fit = held_against(job, limit, Quiet() if quiet else reporter_for(stdout()))
    result |= {"memory": fit_data(fit), "ok": fit.fits}
    if not quiet:
        for line in fit_lines(fit):
            typer.echo(printable(f"{result['file']}: {line}"))


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
