"""What the command line does, as functions: validate, plan, run, sample, export.

They take a `Job` or a job file, raise what the command line prints (`UserError`, with a hint), and
say nothing unless a reporter is given (in a notebook: `dreambooth.Notebook`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dreambooth.component import Problem, Section
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.loading import check_job, dump_job, load_job
from dreambooth.jobs.python import Job
from dreambooth.jobs.typed import Written, read_typed
from dreambooth.runs.finding import open_run, run_of
from dreambooth.runs.result import RunResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dreambooth.component.previews import SamplePrompt
    from dreambooth.engine.cost.plan import Plan
    from dreambooth.engine.reporting import Reporter
    from dreambooth.engine.results.card import Export
    from dreambooth.engine.results.draw import Drawn
    from dreambooth.interfaces import Evaluation, Metric, SafetyChecker

Typed = TypeVar("Typed", bound=Section)
AnyRun = RunResult | Path | str
"""A run: what `run` returned, or its folder (or job file)."""


def validate(job: Job | Path | str, overrides: Sequence[str] = ()) -> Job:
    """Check a job as `dbt validate` does, without torch, and return it with `auto` settled.

    Reads the model's JSON files and the data, and asks every component. `overrides` are texts such
    as `train.steps=200`, for job files alone. Raises `JobError` with everything that is wrong.
    """
    if not isinstance(job, Job):
        return check_job(job, overrides)
    from dreambooth.jobs.checks import require
    from dreambooth.jobs.identifiers import settled
    from dreambooth.jobs.samplers import with_prompts

    job = settled(with_prompts(job))
    require(job)
    return job


def load(job: Path | str, overrides: Sequence[str] = ()) -> Job:
    """Read a job file: types, ranges and names are checked, the data is not looked at.

    `overrides` are texts such as `train.steps=200`.
    """
    return load_job(job, overrides)


def job_text(job: Job) -> str:
    """Return a job as YAML, defaults written out and paths absolute; `load` gives an equal one."""
    return dump_job(job)


def problems(job: Path | str, overrides: Sequence[str] = ()) -> list[Problem]:
    """Return what `validate` finds wrong with a job file, with places in the job."""
    try:
        check_job(job, overrides)
    except JobErrors as errors:
        return [Problem(d.at, d.message, d.hint) for d in errors.diagnostics]
    return []


def read_file(path: Path | str, model: type[Typed]) -> Written[Typed]:
    """Read a YAML file of a plugin's own, typed by `model`, as strictly as jobs are read.

    Returns its `value`, and in `wrong(problems)` what makes an error with places of `Problem`s.
    Raises `JobError` with everything the types find, each with line and column.
    """
    return read_typed(path, model)


def plan(job: Job | Path | str, *, reporter: Reporter | None = None) -> Plan:
    """Return what a run of this job will do, train and cost; nothing is trained or written.

    The model is counted on the `meta` device. What `dbt run --dry-run` shows.
    """
    from dreambooth.engine.cost.plan import make_plan

    return make_plan(validate(job), reporter or _reporter())


def run(
    job: Job | Path | str,
    *,
    fresh: bool = False,
    resume_from: str | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train a job to its end and return what it made, with the history of every number.

    The same call again resumes an interrupted run, and returns at once for a finished one. `fresh`
    sets an existing run of that name aside and starts anew; `resume_from` goes back to one of the
    run's checkpoints, or begins at another run's. Raises `UserError` for whatever the person can
    mend; a signal while training saves a checkpoint and raises `Interrupted`.
    """
    from dreambooth.engine.loop import run as train

    job = job if isinstance(job, Job) else load_job(job)
    return train(job, fresh=fresh, resume_from=resume_from, reporter=reporter or _reporter())


def sample(
    run: AnyRun,
    prompts: Sequence[str] | str,
    *,
    count: int = 4,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    size: int | tuple[int, int] | None = None,
    safety: SafetyChecker | str | None = None,
    step: int | Sequence[int] | None = None,
    out: Path | str | None = None,
    reporter: Reporter | None = None,
) -> Drawn:
    """Draw `count` pictures a prompt with a trained run; `{identifier}` and `{class_noun}` fill in.

    `steps` are sampling steps. `step` is a training step that the run keeps a checkpoint or an
    export of; of several each has a row of the grid. `size` is the side, or (height, width), in
    pixels; `out` a new or empty folder, by default `samples/drawn-N` of the run. Files of the
    pictures are in the answer's `files`. `safety` is what looks at them before they are written,
    by default the job's own: a checker, its kind, or another action of the job's (`off`, `flag`,
    `blur`, `refuse`).
    """
    from dreambooth.engine.results.draw import DrawRequest, draw_from_run
    from dreambooth.jobs.named import named_checker
    from dreambooth.jobs.samplers import with_sampler_options

    folder, job = open_run(_folder(run))
    sampler = with_sampler_options(job.sampler, steps=steps, guidance_scale=guidance)
    request = DrawRequest(
        prompts=[prompts] if isinstance(prompts, str) else list(prompts),
        count=count,
        seed=seed,
        negative=negative,
        size=(size, size) if isinstance(size, int) else size,
        sampler=sampler,
        safety=named_checker(safety, job) if isinstance(safety, str) else safety,
        out=Path(out).absolute() if out is not None else None,
        training_steps=[step] if isinstance(step, int) else sorted({*(step or ())}),
    )
    return draw_from_run(folder.path, request, reporter or _reporter())


def export(
    run: AnyRun,
    format: str,
    *,
    options: Mapping[str, Any] | None = None,
    dest: Path | str | None = None,
    step: int | None = None,
    check: bool = True,
    reporter: Reporter | None = None,
) -> Export:
    """Write a trained run in another file format (`lora`, `kohya`, `diffusers`, a plugin's).

    `options` are the format's own (`{"dtype": "fp16"}`); `dest` is a new or empty folder, by
    default `exports/FORMAT` of the run. `step` is a training step that the run keeps, into
    `exports/FORMAT-step-N`. With `check` the files are read back and compared with the
    live model: `RunError` where they differ.
    """
    from dreambooth.engine.results.exports import export_run
    from dreambooth.jobs.named import named_exporter

    folder, job = run_of(_folder(run))
    given = [f"{name}={json.dumps(value)}" for name, value in (options or {}).items()]
    exporter = named_exporter(folder.job, job, format, given)
    where = Path(dest).absolute() if dest is not None else None
    made, _ = export_run(
        folder, job, exporter, reporter or _reporter(), dest=where, check=check, step=step
    )
    return made


def evaluate(
    run: AnyRun,
    metrics: Sequence[Metric],
    *,
    prompts: Path | str | Sequence[str | SamplePrompt] | None = None,
    images_per_prompt: int = 4,
    step: int | None = None,
    all_steps: bool = False,
    reporter: Reporter | None = None,
) -> list[Evaluation]:
    """Measure a trained run, and write the numbers into `evaluations/` of its folder.

    `prompts` is a YAML file of prompts or the prompts themselves, by default those of the job's
    samples; one of the class and some unrelated ones are added. `step` is one whose weights the
    run keeps. With `all_steps` the samples drawn while training are measured instead. Numbers of
    other prompts or another encoder lie beside each other (`Evaluation.file`).
    """
    from dreambooth.component.previews import entry_of
    from dreambooth.engine.results.evaluation import evaluate_run
    from dreambooth.jobs.samplers import read_prompts

    chosen: list[SamplePrompt] | None = None
    if isinstance(prompts, Path | str):
        chosen = read_prompts(Path(prompts))
    elif prompts is not None:
        chosen = [entry_of(prompt) for prompt in prompts]
    return evaluate_run(
        _folder(run),
        metrics,
        reporter or _reporter(),
        prompts=chosen,
        per_prompt=images_per_prompt,
        step=step,
        all_steps=all_steps,
    )


def terminal(*, quiet_stdout: bool = False) -> Reporter:
    """Return what shows progress as `dbt` does; on stderr where stdout is for data."""
    from dreambooth import console
    from dreambooth.cli.display.progress import reporter_for

    return reporter_for(console.stderr() if quiet_stdout else console.stdout())


def _folder(run: AnyRun) -> Path:
    return run.folder if isinstance(run, RunResult) else Path(run)


def _reporter() -> Reporter:
    from dreambooth.engine.watching.notebook import Notebook, in_notebook

    if in_notebook():
        return Notebook()
    from dreambooth.engine.reporting import Quiet

    return Quiet()
