"""`dbt run`: train a job to its end, or go on with it."""

from __future__ import annotations

import signal
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from dreambooth.engine.loop import RunResult
    from dreambooth.job import Job


def run(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="Job file.", show_default=False)],
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override", "-o", metavar="KEY=VALUE", help="Set an option, e.g. -o train.steps=200."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and stop: nothing is trained.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew; an existing run is moved aside.")
    ] = False,
) -> None:
    """Train a job. The same command resumes a run that was interrupted."""
    from dreambooth.console import print_warning, stdout
    from dreambooth.errors import Interrupted
    from dreambooth.jobfile import check_job
    from dreambooth.plugins import registry

    for problem in registry().problems():
        print_warning(problem)
    loaded = check_job(job, override or ())
    console = stdout()

    # From here on torch is needed; the checks above answered in half a second.
    from dreambooth.cli.progress import reporter_for
    from dreambooth.cli.show_plan import show_plan
    from dreambooth.engine.loop import run as run_job
    from dreambooth.engine.plan import make_plan
    from dreambooth.engine.reporting import Quiet

    teller = reporter_for(console) if dry_run else Quiet()
    show_plan(console, loaded, make_plan(loaded, teller, fresh=fresh))
    if dry_run:
        return
    console.print()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        result = run_job(loaded, fresh=fresh, reporter=reporter_for(console))
    except KeyboardInterrupt as stop:
        raise Interrupted(
            "interrupted",
            "what was finished is kept (caches, class images, checkpoints): "
            "run the same command again to go on",
            signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT,
        ) from None
    show_result(console, loaded, result)


class Terminated(KeyboardInterrupt):
    """SIGTERM outside of training, where nothing has to be finished first."""


def _terminated(number: int, frame: object) -> None:
    raise Terminated


def show_result(console: Console, job: Job, result: RunResult) -> None:
    """Say what was made and what to do next."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    folder = shown(result.folder)
    say("")
    if result.already_finished:
        say(f"this run is finished: {result.steps} steps")
        say(f"to go on training it: -o train.steps={2 * result.steps}; to start anew: --fresh")
    else:
        say(f"done: {result.steps} steps")
    for line in result.checks:
        say(f"checked  {line}")
    say(f"result   {shown(result.final)}")
    if job.samples.every:
        say(f"samples  {folder}/samples")
    prompt = job.subject.fill("a photo of {identifier} {class_noun} on the moon")
    say(f"next     dbt sample {quote(folder)} {quote(prompt)}")


def shown(path: Path) -> str:
    """Write a path relative to the working folder where that is shorter."""
    relative = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return str(relative)
