"""`dbt run`: train a job to its end, or go on with it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth.errors import Interrupted, JobError, UserError

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
    resume_from: Annotated[
        str | None,
        typer.Option(
            metavar="STEP|DIR", help="Go back to a checkpoint, or begin at another run's."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Processes on this machine, one a GPU.")
    ] = 1,
) -> None:
    """Train a job. The same command resumes a run that was interrupted."""
    from dreambooth import launcher
    from dreambooth.console import print_warning
    from dreambooth.jobfile import check_job
    from dreambooth.plugins import registry

    if fresh and resume_from:
        raise JobError("--fresh and --resume-from exclude each other", "leave one of them out")
    if launcher.rank() == 0:
        for problem in registry().problems():
            print_warning(problem)
    try:
        loaded = check_job(job, override or ())
        if processes == 1 or dry_run:
            _train(loaded, dry_run, fresh, resume_from, processes)
            return
    except UserError as error:
        raise _of_this_process(error) from error
    arguments = ["run", str(job), *(f"-o{pair}" for pair in override or ())]
    arguments += ["--fresh"] if fresh else []
    arguments += ["--resume-from", resume_from] if resume_from else []
    sys.exit(launcher.launch(arguments, processes))


def _of_this_process(error: UserError) -> UserError:
    """Where several processes run one job, let one speak, or say which one it is."""
    from dreambooth import launcher

    if launcher.rank() == 0:
        return error
    if isinstance(error, JobError | Interrupted):  # the main process says the same
        sys.exit(error.exit_code)
    error.message = f"process {launcher.rank()}: {error.message}"
    return error


def _train(job: Job, dry_run: bool, fresh: bool, resume_from: str | None, processes: int) -> None:
    """Show the plan, run the job, show the result; other processes than the first are silent."""
    # From here on torch is needed; the checks before answered in half a second.
    from dreambooth import launcher
    from dreambooth.cli.progress import reporter_for
    from dreambooth.cli.show_plan import show_plan
    from dreambooth.console import stdout
    from dreambooth.engine.loop import run as run_job
    from dreambooth.engine.plan import make_plan
    from dreambooth.engine.reporting import Quiet

    console, speaks = stdout(), launcher.rank() == 0
    if speaks:
        teller = reporter_for(console) if dry_run else Quiet()
        count = max(processes, launcher.process_count())
        show_plan(console, job, make_plan(job, teller, fresh=fresh, processes=count))
        if dry_run:
            return
        console.print()
    signal.signal(signal.SIGTERM, _terminated)
    reporter = reporter_for(console) if speaks else Quiet()
    try:
        result = run_job(job, fresh=fresh, resume_from=resume_from, reporter=reporter)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            "interrupted",
            "what was finished is kept (caches, class images, checkpoints): "
            "run the same command again to go on",
            signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT,
        ) from None
    if speaks:
        show_result(console, job, result)


class Terminated(KeyboardInterrupt):
    """SIGTERM outside of training, where nothing has to be finished first."""


def _terminated(number: int, frame: object) -> None:
    raise Terminated


def show_result(console: Console, job: Job, result: RunResult) -> None:
    """Say what was made and what to do next."""
    from dreambooth.printable import one_line

    def say(text: str) -> None:
        console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)

    folder = shown(result.folder)
    say("")
    if result.already_finished:
        say(f"this run is finished: {result.steps} steps")
        more = "early_stop=null" if result.for_good else f"train.steps={2 * result.steps}"
        say(f"to go on training it: -o {more}; to start anew: --fresh")
    else:
        say(f"done: {result.steps} steps")
    if result.stopped:
        say(f"stopped  {result.stopped}")
    if result.kept:
        say(f"kept     {result.kept}")
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
