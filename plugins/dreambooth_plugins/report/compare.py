"""Several runs held against each other: what differs, and which is better by how much."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from dreambooth_plugins.report.inputs import title_of
from dreambooth_plugins.report.verdict import best_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreambooth_plugins.report.document import Better, Evaluation, Run

_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t, two-sided 95 %, for 1 to 30 degrees of freedom."""


@dataclass(frozen=True)
class Difference:
    """A setting in which the runs are not alike, and each run's value."""

    what: str
    values: list[str]


@dataclass(frozen=True)
class Verdict:
    """One measure of two runs: mean of the paired differences and its 95 % interval."""

    title: str
    first: str
    second: str
    difference: float
    """Second less first."""
    margin: float
    """Half the width of the interval; infinite for a single pair."""
    pairs: int
    prompts: int
    sentence: str
    clear: bool


def student(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t, within 0.2 % above 30 degrees."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    # Cornish and Fisher's expansion about the normal quantile.
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(values: list[float]) -> tuple[float, float]:
    """Return a mean and half of its 95 % interval: t(n - 1) s / sqrt(n); infinite for n = 1."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, float("inf")
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, student(n - 1) * sqrt(variance / n)


def differences(runs: list[Run]) -> list[Difference]:
    """Return what is not alike in all runs: options, then photographs, device and versions."""
    tables = [{option.key: option.value for option in run.options} for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    found = []
    for key in keys:
        if key == "name":
            continue
        values = [table.get(key, "not there") for table in tables]
        if len(set(values)) > 1:
            found.append(Difference(key, values))
    if len({tuple(sorted(run.pictures_seen.values())) for run in runs}) > 1:
        said = [f"{len(run.pictures_seen)} photographs" for run in runs]
        found.append(Difference("photographs (by content)", said))
    for label in ("Base model", "Device", "Versions", "Plugins"):
        values = [dict(run.facts).get(label, "unknown") for run in runs]
        if len(set(values)) > 1:
            found.append(Difference(label.lower(), values))
    if len({run.steps for run in runs}) > 1 and not any(d.what == "train.steps" for d in found):
        found.append(Difference("steps reached", [str(run.steps) for run in runs]))
    return found


def judged(run: Run) -> Evaluation | None:
    """Return the evaluation a run is compared by: its best step's, else its last one's."""
    return best_of(run.evaluations) or (run.evaluations[-1] if run.evaluations else None)


def verdicts(runs: list[Run]) -> tuple[list[Verdict], list[str]]:
    """Hold every other run against the first, and say what cannot be compared, and why.

    Pictures are paired by prompt and seed. Those of a prompt have much in common, so the
    differences are averaged within it first and the interval is over prompts; with one prompt it
    is over its seeds, and said so. Few prompts are the rule: Student's t holds its 95 % there,
    which percentiles of a bootstrap over three prompts do not.
    """
    found, notes = list[Verdict](), list[str]()
    first, *others = runs
    base = judged(first)
    if base is None:
        return [], [f"Nothing was measured on {first.name}: dbt evaluate does it."]
    for run in others:
        mine = judged(run)
        if (refused := _refusal(first, base, run, mine)) or mine is None:
            notes.append(refused)
            continue
        found += _of_pair(first.name, base, run.name, mine)
    return found, notes


def _refusal(first: Run, base: Evaluation, run: Run, mine: Evaluation | None) -> str:
    if mine is None:
        return f"Nothing was measured on {run.name}: dbt evaluate does it."
    if mine.encoder != base.encoder:
        return (
            f"{first.name} and {run.name} are not compared in numbers: they were measured by "
            f"{base.encoder} and by {mine.encoder}."
        )
    if sorted(first.pictures_seen.values()) != sorted(run.pictures_seen.values()):
        return (
            f"{first.name} and {run.name} are not compared in numbers: they learned from "
            "different photographs."
        )
    cuts = [
        [option.value for option in one.options if option.key in ("data.resolution", "data.crop")]
        for one in (first, run)
    ]
    if cuts[0] != cuts[1]:
        return (
            f"{first.name} and {run.name} are not compared in numbers: their photographs were cut "
            "to different sizes or in different ways."
        )
    if not _pairs(base, mine):
        return (
            f"{first.name} and {run.name} are not compared in numbers: no picture of theirs has "
            "the same prompt and seed."
        )
    return ""


def _pairs(
    first: Evaluation, second: Evaluation
) -> list[tuple[str, dict[str, float], dict[str, float]]]:
    """Return prompt and values of the pictures that both runs drew from one prompt and seed."""
    known = {(p.key, p.seed): p.values for p in first.pictures}
    return [
        (p.key, known[p.key, p.seed], p.values) for p in second.pictures if (p.key, p.seed) in known
    ]


def _of_pair(name: str, first: Evaluation, other: str, second: Evaluation) -> Iterable[Verdict]:
    pairs = _pairs(first, second)
    better: dict[str, Better] = {m.name: m.better for m in first.measures}
    for measure in dict.fromkeys(key for _, values, _ in pairs for key in values):
        by_prompt: dict[str, list[float]] = defaultdict(list)
        for prompt, one, two in pairs:
            if measure in one and measure in two:
                by_prompt[prompt].append(two[measure] - one[measure])
        if not by_prompt:
            continue
        lists = list(by_prompt.values())
        units = lists[0] if len(lists) == 1 else [sum(some) / len(some) for some in lists]
        mean, margin = interval(units)
        count, clear = sum(map(len, lists)), abs(mean) > margin
        title = title_of(measure)
        said = _sentence(title, name, other, mean, margin, better.get(measure, "higher"))
        over = f"{len(lists)} prompts" if len(lists) > 1 else "one prompt, over its seeds"
        pairs_of = "pair" if count == 1 else "pairs"
        said = f"{said.removesuffix('.')} ({count} {pairs_of} of pictures, {over})."
        yield Verdict(title, name, other, mean, margin, count, len(lists), said, clear)


def _sentence(title: str, a: str, b: str, mean: float, margin: float, better: Better) -> str:
    if margin == float("inf"):
        return f"{title}: one pair of pictures says nothing certain, {mean:+.3f} for {b}."
    figures = f"{abs(mean):.3f} ± {margin:.3f}"
    if abs(mean) <= margin:
        return f"{title}: no clear difference between {a} and {b} ({mean:+.3f} ± {margin:.3f})."
    winner = b if (mean > 0) == (better == "higher") else a
    return f"{title}: {winner} is better by {figures}."
