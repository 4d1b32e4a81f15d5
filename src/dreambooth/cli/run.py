"""`dbt run`: train a job to its end, or go on with it."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreambooth.errors import Interrupted, JobError, ToldElsewhere, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from dreambooth.cli.display.timeleft import Pause
    from dreambooth.job import Job
    from dreambooth.runs.outlook import Outlook
    from dreambooth.runs.result import RunResult


Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="With --dry-run: would it fit into, say, 12GiB?"),
]


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
    memory: Memory = None,
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
    """Train a job. The same command resumes a run that was interrupted.

    Signals: Ctrl-C, SIGTERM, SIGHUP (the terminal was closed) and SIGUSR2 finish the step, save and
    leave with exit code 128 + the signal's number; a second Ctrl-C leaves at once. SIGUSR1 writes a
    checkpoint and goes on. What was ignored at the start (nohup) stays ignored.
    """
    from dreambooth import process
    from dreambooth.console import print_warning
    from dreambooth.jobs.loading import check_job
    from dreambooth.plugins import registry
    from dreambooth.process import launcher

    process.only_displays()
    process.spare()
    limit = _check_options(dry_run, fresh, resume_from, memory)
    launcher.require_environment()
    if dry_run and launcher.rank():  # the first process shows the plan
        return
    for problem in registry().problems() if launcher.rank() == 0 else ():
        print_warning(problem)
    try:
        with _interruptible():
            loaded = check_job(job, override or ())
            outlook = _look_ahead(loaded, dry_run, fresh, resume_from, processes)
            if outlook and outlook.finished:
                _show_finished(loaded, outlook.finished)
                return
            if processes == 1 or dry_run:
                _train(loaded, dry_run, fresh, resume_from, processes, outlook)
                if limit:
                    show_fit(loaded, limit)
                return
    except UserError as error:
        raise _of_this_process(error) from error
    sys.exit(launcher.launch(_same_command(job, override or (), fresh, resume_from), processes))


def _check_options(dry_run: bool, fresh: bool, resume_from: str | None, memory: str | None) -> int:
    """Refuse options that exclude each other; return the memory to hold the job against, or 0."""
    from dreambooth.helpers.units import read_bytes

    if fresh and resume_from:
        raise JobError("--fresh and --resume-from exclude each other", "leave one of them out")
    if memory and not dry_run:
        raise JobError("--memory is looked at by --dry-run alone", "add --dry-run, or leave it out")
    return read_bytes("--memory", memory) if memory else 0


def _same_command(
    job: Path, override: Sequence[str], fresh: bool, resume_from: str | None
) -> list[str]:
    """Return the arguments that each of several processes is started with."""
    arguments = ["run", str(job), *(f"-o{pair}" for pair in override)]
    arguments += ["--fresh"] if fresh else []
    return [*arguments, "--resume-from", resume_from] if resume_from else arguments


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn a signal outside of training, where nothing has to be finished, into `Interrupted`."""
    from dreambooth import process

    try:
        with process.noted_signals():
            yield
    except process.Stopped as stop:
        raise Interrupted(
            "interrupted",
            "what was finished is kept (caches, class images, checkpoints): "
            "run the same command again to go on",
            stop.number,
        ) from None


def _look_ahead(
    job: Job, dry_run: bool, fresh: bool, resume_from: str | None, processes: int
) -> Outlook | None:
    """Return what the run will do, before any work; None where all processes have to be told."""
    from dreambooth.console import print_warning
    from dreambooth.process import launcher
    from dreambooth.runs.outlook import look_ahead

    shared = launcher.process_count() > 1 and not dry_run
    if shared and launcher.rank() > 0:
        return None
    count = max(processes, launcher.process_count())
    warn = print_warning if dry_run else _unsaid
    try:
        outlook = look_ahead(job, fresh=fresh, resume_from=resume_from, processes=count, warn=warn)
    except UserError:
        if shared:  # those that wait for this one have to leave, too
            return None
        raise
    return None if shared and outlook.finished else outlook


def _unsaid(message: str) -> None:
    """Leave a warning to the run itself."""


def _of_this_process(error: UserError) -> UserError:
    """Where several processes run one job, let one speak, or say which one it is."""
    from dreambooth.process import launcher

    if launcher.rank() == 0:
        return error
    if isinstance(error, JobError | Interrupted | ToldElsewhere):  # the main process says the same
        sys.exit(error.exit_code)
    error.message = f"process {launcher.rank()}: {error.message}"
    return error


def _leave_at_once(error: UserError) -> None:
    """Tell an error and end the process: the thread that runs the job will never come back."""
    from dreambooth.console import print_error

    print_error(error)
    os._exit(error.exit_code)


def _train(
    job: Job,
    dry_run: bool,
    fresh: bool,
    resume_from: str | None,
    processes: int,
    outlook: Outlook | None,
) -> None:
    """Show the plan, run the job, show the result; other processes than the first are silent."""
    # From here on torch is needed; the checks before answered in half a second.
    from dreambooth.cli.display.plan import show_plan
    from dreambooth.cli.display.progress import reporter_for
    from dreambooth.cli.display.timeleft import pauses_of
    from dreambooth.console import stdout
    from dreambooth.engine.cost.plan import make_plan
    from dreambooth.engine.loop import run as run_job
    from dreambooth.engine.manifest import hold_against
    from dreambooth.engine.reporting import Quiet
    from dreambooth.process import launcher

    console, speaks = stdout(), launcher.rank() == 0
    pauses: Sequence[Pause] = ()
    if speaks and outlook:
        teller = reporter_for(console) if dry_run else Quiet()
        count = max(processes, launcher.process_count())
        plan = make_plan(job, teller, resumes_at=outlook.step, fresh=fresh, processes=count)
        hold_against(job, plan.scan, outlook)
        pauses = pauses_of(job, plan)
        for line in outlook.lines() if dry_run else ():
            teller.info(line)
        show_plan(console, job, plan)
        if not outlook.step:
            show_worst(console, job)
        if dry_run:
            return
        console.print()
    began = time.monotonic()
    reporter = reporter_for(console, pauses) if speaks else Quiet()
    result = run_job(
        job, fresh=fresh, resume_from=resume_from, reporter=reporter, leave=_leave_at_once
    )
    if speaks:
        show_result(console, job, result, time.monotonic() - began)


def show_fit(job: Job, limit: int) -> None:
    """Say whether a job fits into a memory of `limit` bytes, and which options would make it."""
    from dreambooth.cli.display.fit import fit_lines
    from dreambooth.cli.display.progress import reporter_for
    from dreambooth.console import say, stdout
    from dreambooth.engine.cost.fitting import held_against

    console = stdout()
    for number, line in enumerate(fit_lines(held_against(job, limit, reporter_for(console)))):
        say(console, f"{'' if number else 'memory':<13} {line}", indent=14)


def show_worst(console: Console, job: Job, count: int = 2) -> None:
    """Show the doctor's worst lines; what the doctor cannot look at is the run's to tell."""
    from dreambooth.cli.doctor.command import lines
    from dreambooth.cli.doctor.looking import look
    from dreambooth.console import say
    from dreambooth.helpers.text import one_line

    try:
        worst = look(job.data, job).worst(count)
    except (UserError, OSError):
        return
    for line in lines(worst):
        say(console, one_line(line), indent=9)


def _show_finished(job: Job, done: dict[str, Any]) -> None:
    """Say what a run made that has nothing left to do: neither torch nor a lock is needed."""
    from dreambooth.console import stdout
    from dreambooth.runs.folder import RunFolder
    from dreambooth.runs.result import result_of

    show_result(stdout(), job, result_of(RunFolder(job.folder), done, already_finished=True))


def show_result(console: Console, job: Job, result: RunResult, seconds: float = 0.0) -> None:
    """Say what was made, how long that took, and what to do next."""
    from dreambooth.console import say
    from dreambooth.helpers.text import one_line
    from dreambooth.helpers.units import duration, file_size, folder_size, shown_path
    from dreambooth.runs.findings import finding_lines, read_findings
    from dreambooth.runs.folder import RunFolder

    def line(text: str) -> None:
        say(console, one_line(text), indent=9)

    folder = shown_path(result.folder)
    line("")
    if result.already_finished:
        line(f"this run is finished: {result.steps} steps")
        more = "early_stop=null" if result.for_good else f"train.steps={2 * result.steps}"
        line(f"to go on training it: -o {more}; to start anew: --fresh")
    else:
        line(f"done: {result.steps} steps in {duration(seconds)}")
    if result.stopped:
        line(f"stopped  {result.stopped}")
    if result.kept:
        line(f"kept     {result.kept}")
    for check in result.checks:
        line(f"checked  {check}")
    line(f"result   {shown_path(result.final)} ({file_size(folder_size(result.final))})")
    if job.samples.every:
        line(f"samples  {folder}/samples, over time on {folder}/contact-sheet.png")
    for told in finding_lines(read_findings(RunFolder(result.folder))):
        line(told)
    command = f"dbt sample {quote(folder)} {quote(next_prompt(job))}"
    say(console, f"next     {command}", copied=True)


def next_prompt(job: Job) -> str:
    """Return a prompt to try: one of the job's own, which suit its model and name the subject."""
    naming = (e.prompt for e in job.samples.entries if "{identifier}" in e.prompt)
    return job.subject.fill(next(naming, "a photo of {identifier} {class_noun}"))
