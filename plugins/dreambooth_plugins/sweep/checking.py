"""A sweep held against its job: every key, every choice and both ends, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth import JobError, Problem
from dreambooth_plugins.sweep.file import Axis, SweepFile
from dreambooth_plugins.sweep.space import Dimension, grid, override

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth import Job


@dataclass(frozen=True)
class Sweep:
    """A sweep that was checked."""

    file: SweepFile
    job: Job
    """The template."""
    space: list[Dimension]
    trials: int


def check(path: Path) -> Sweep:
    """Read a sweep and its template, and try what the space may bring on the job.

    Each choice and each end of a range is set into the template, the other keys at their first
    value, and checked as `dbt validate` checks a job. Raises `JobError` with everything wrong:
    the template's faults at its lines, the sweep's at its own.
    """
    from dreambooth.api import load, read_file, validate

    written = read_file(path, SweepFile)
    sweep = written.value
    if not sweep.job.is_file():
        raise written.wrong([Problem(("job",), f"there is no job file {sweep.job}")])
    validate(sweep.job)
    job = load(sweep.job)
    space = [Dimension(key, axis, is_whole(job, key, axis)) for key, axis in sweep.space.items()]
    found = [*values_of(sweep, space), *objectives_of(sweep, job), *_own_keys(sweep)]
    count, more = trials_of(sweep, space)
    if found := [*found, *more]:
        raise written.wrong(dict.fromkeys(found))
    return Sweep(sweep, job, space, count)


def is_whole(job: Job, key: str, axis: Axis) -> bool:
    """Say whether the job's key takes whole numbers alone: what it says now is one, and it is none
    of those that read 1 as 1.0. A key that is not set is judged by the range."""
    value: Any = job.resolved()
    for step in key.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return all(v is None or v == int(v) for v in (axis.low, axis.high, axis.step))
    return isinstance(value, int)


def values_of(sweep: SweepFile, space: list[Dimension]) -> list[Problem]:
    """Return what is wrong with keys and values, at their places in the sweep."""
    from dreambooth.api import problems

    first = {d.key: override(d.key, d.ends()[0]) for d in space}
    found: list[Problem] = []
    for dimension in space:
        if dimension.key.rpartition(".")[2] == "kind":
            found.append(_kind_alone(dimension.key))
            continue
        step = dimension.axis.step
        if dimension.whole and step is not None and step != int(step):
            at = ("space", dimension.key, "step")
            found.append(Problem(at, f"{dimension.key} takes whole numbers: so must step be"))
            continue
        said = []
        for value in dimension.ends():
            tried = {**first, dimension.key: override(dimension.key, value)}
            wrong = problems(sweep.job, list(tried.values()))
            said.append([p for p in wrong if _concerns(p, dimension.key, tried)])
        found += _placed(dimension, said)
    return found


def _concerns(problem: Problem, key: str, tried: dict[str, str]) -> bool:
    """Say whether a fault is that of this key: at it, or at none of the other keys."""
    at = ".".join(map(str, problem.at))

    def covers(other: str) -> bool:
        return bool(at) and (
            at == other or at.startswith(f"{other}.") or other.startswith(f"{at}.")
        )

    return covers(key) or not any(covers(other) for other in tried if other != key)


def _placed(dimension: Dimension, said: list[list[Problem]]) -> list[Problem]:
    """Return what each value brings, at the value; what all of them bring, at the key."""
    texts = [{(p.message, p.hint) for p in each} for each in said]
    common = set.intersection(*texts)
    at_key = [Problem(("space", dimension.key), *text) for text in sorted(common)]
    return at_key + [
        Problem(_place(dimension, number), p.message, p.hint)
        for number, each in enumerate(said)
        for p in each
        if (p.message, p.hint) not in common
    ]


def _place(dimension: Dimension, number: int) -> tuple[str | int, ...]:
    if dimension.axis.choices is None:
        return ("space", dimension.key, ("low", "high")[number])
    return ("space", dimension.key, number)


def _kind_alone(key: str) -> Problem:
    slot = key.rpartition(".")[0]
    return Problem(
        ("space", key),
        "a kind alone would be given the options of another one",
        f"vary the whole of it: {slot}: [adamw, {{kind: prodigy, lr: 1.0}}], for example",
    )


def objectives_of(sweep: SweepFile, job: Job) -> list[Problem]:
    """Return what is wrong with the objective: numbers the job never logs, pruning by two."""
    from dreambooth.helpers.scalars import never_logged

    found: list[Problem] = []
    for number, objective in enumerate(sweep.objective):
        if problem := never_logged(job, objective.metric, ("objective", number, "metric")):
            found.append(Problem(problem.at, problem.message, f"{problem.hint} (in {sweep.job})"))
        if objective.at == "best" and not any(t.kind == "jsonl" for t in job.trackers):
            found.append(
                Problem(
                    ("objective", number, "at"),
                    "the best value is read from metrics.jsonl, which the job does not write",
                    "add jsonl to its trackers",
                )
            )
    if len(sweep.objective) > 1 and sweep.pruner.kind != "none":
        found.append(
            Problem(("pruner",), "trials are pruned by one number, and the objective has two")
        )
    return found


def _own_keys(sweep: SweepFile) -> list[Problem]:
    """Return the keys that a study sets itself."""
    return [
        Problem(("space", key), f'"{key}" is set by the study: every trial has its own')
        for key in sweep.space
        if key in ("name", "output", "version")
    ]


def trials_of(sweep: SweepFile, space: list[Dimension]) -> tuple[int, list[Problem]]:
    """Return how many trials a study has, and what is wrong with that."""
    if sweep.search.kind != "grid":
        if sweep.trials is None:
            return 0, [Problem((), f'a {sweep.search.kind} search needs "trials"')]
        return sweep.trials, []
    try:
        points = len(grid(space))
    except JobError as error:
        return 0, [Problem(("space",), error.message, error.hint)]
    return min(points, sweep.trials or points), []


def summary(path: Path) -> str:
    """Check a sweep and return it in one line, for `dbt validate`."""
    sweep = check(path)
    goal = " and ".join(f"{o.mode} {o.metric}" for o in sweep.file.objective)
    keys = ", ".join(d.key for d in sweep.space)
    return f"{sweep.file.name}, {sweep.trials} trials, {sweep.file.search.kind}: {goal} over {keys}"
