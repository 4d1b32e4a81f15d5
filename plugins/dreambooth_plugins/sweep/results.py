"""What a study found: a row a trial, the best ones, and their jobs as files to run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.files import write_json, write_text
from dreambooth.helpers.text import one_line
from dreambooth_plugins.sweep import trials as attempts
from dreambooth_plugins.sweep.folder import trial_name
from dreambooth_plugins.sweep.running import job_of
from dreambooth_plugins.sweep.space import meant, readable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import FrozenTrial

    from dreambooth_plugins.sweep.checking import Sweep
    from dreambooth_plugins.sweep.file import Objective
    from dreambooth_plugins.sweep.folder import StudyFolder
    from dreambooth_plugins.sweep.space import Dimension


def rows(space: list[Dimension], found: Mapping[int, FrozenTrial]) -> list[dict[str, Any]]:
    """Return a row a trial, as plain data: number, state, values drawn, what they gave, error."""
    return [
        {
            "trial": number,
            "name": trial_name(number),
            "state": attempts.state_of(attempt),
            "params": meant(space, attempt.params),
            "values": list(attempt.values or ()),
            "error": attempt.user_attrs.get(attempts.ERROR, ""),
            "workers_lost": attempt.user_attrs.get(attempts.DEATHS, 0),
        }
        for number, attempt in sorted(found.items())
    ]


def best(table: Sequence[dict[str, Any]], objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """Return the best row, the earliest of equal ones; of two objectives all of the front.

    A trial is on the Pareto front where no other is at least as good in both numbers and better
    in one.
    """
    signs = [1.0 if o.mode == "min" else -1.0 for o in objectives]
    done = [
        (row, [s * v for s, v in zip(signs, row["values"], strict=True)])
        for row in table
        if row["state"] == "done"
    ]

    def beaten(mine: list[float]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine
            for _, other in done
        )

    front = [row for row, values in done if not beaten(values)]
    return front if len(objectives) > 1 else front[:1]


def write(folder: StudyFolder, sweep: Sweep, found: Mapping[int, FrozenTrial]) -> dict[str, Any]:
    """Write `results.json` and the best jobs; return what the file says."""
    from dreambooth.api import job_text

    table = rows(sweep.space, found)
    front = best(table, sweep.file.objective)
    for row in front:
        job = job_of(folder, sweep.space, row["trial"], found[row["trial"]].params)
        single = len(sweep.file.objective) == 1
        name = f"{sweep.file.name}-{'best' if single else row['name']}"
        named = job.model_copy(update={"name": name, "output": sweep.job.output})
        write_text(folder.best / ("job.yaml" if single else f"{row['name']}.yaml"), job_text(named))
    said = {
        "version": 1,
        "study": sweep.file.name,
        "objective": [o.model_dump() for o in sweep.file.objective],
        "trials": table,
        "best": [row["trial"] for row in front],
    }
    write_json(folder.results, said)
    return said


def lines(folder: StudyFolder, said: Mapping[str, Any]) -> list[str]:
    """Return the outcome for people: the best first, then what failed."""
    table = said["trials"]
    states = [row["state"] for row in table]
    counts = ", ".join(
        f"{states.count(word)} {word}"
        for word in ("done", "pruned", "failed", "running", "waiting")
        if word in states
    )
    told = [f"study    {folder.path} ({counts or 'no trials yet'})"]
    names = [objective["metric"] for objective in said["objective"]]
    for row in table:
        if row["trial"] in said["best"]:
            gave = ", ".join(f"{n} {v:.5g}" for n, v in zip(names, row["values"], strict=True))
            told.append(f"best     {row['name']}: {gave}; {readable(row['params'])}")
    told += [f"failed   {row['name']}: {one_line(row['error'])}" for row in table if row["error"]]
    if said["best"]:
        one = folder.best / "job.yaml" if len(names) == 1 else folder.best
        told.append(f"job      {one}")
    return told
