"""Evaluations as lines, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from dreambooth_plugins.common.best import best_step, obeying

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.interfaces import Evaluation

NAMES = {
    "subject_similarity": "likeness",
    "prompt_alignment": "does as told",
    "prompt_contrast": "prompts apart",
    "prior_preservation": "class like yours",
    "diversity": "variety",
    "drift": "drift",
    "copying": "nearest photo",
    "photo_distance": "pixels apart",
}
COLUMNS = ("step", "name", "encoder", "value", "stderr", "n", "baseline", "real", "better")


def lines(name: str, evaluation: Evaluation) -> list[str]:
    """Return what a person reads of one step, within 80 columns."""
    count, photos = len(evaluation.drawings), evaluation.settings.get("photographs", 0)
    one = "photograph" if photos == 1 else "photographs"
    found = [
        f"{name} at step {evaluation.step}: {count} pictures, {photos} {one}",
        "",
        f"{'':<17}{'this run':>16}{'untrained':>11}{'photos':>8}  {'better':<7}{'n':>3}",
    ]
    for score in evaluation.scores:
        value = f"{score.value:.3f}"
        value += "" if score.stderr is None else f" +- {score.stderr:.3f}"
        label = NAMES.get(score.name, score.name)[:17]
        found.append(
            f"{label:<17}{value:>16}{_number(score.baseline):>11}{_number(score.real):>8}"
            f"  {score.better:<7}{score.n:>3}"
        )
    encoders = ", ".join(dict.fromkeys(s.encoder for s in evaluation.scores if s.encoder))
    found += ["", f"through {encoders}; numbers of another encoder are not comparable"]
    if photos == 1:
        found.append("with one photograph there is no likeness of photographs to each other")
    if not any(s.name == "diversity" for s in evaluation.scores):
        found.append("variety needs two pictures of a prompt or more")
    if not any(s.name == "prompt_alignment" for s in evaluation.scores):
        found.append("whether prompts are obeyed needs an encoder that reads text (a CLIP)")
    return [*found, f"written to {evaluation.file.parent.name}/{evaluation.file.name}", ""]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def best_of(evaluations: Sequence[Evaluation]) -> tuple[int, str] | None:
    """Return the best step (see `common.best`), and why it is."""
    like, free = (_by_step(evaluations, n) for n in ("subject_similarity", "prompt_alignment"))
    step = best_step(like, free)
    if step is None:
        return None
    left = len(like) - len(set(obeying(free)) & set(like)) if free else 0
    why = f"; {left} other{'s' if left > 1 else ''} obey prompts less" if left else ""
    return step, f"likeness {like[step][0]:.3f}, the highest{why}"


def _by_step(evaluations: Sequence[Evaluation], name: str) -> dict[int, tuple[float, float]]:
    found = {e.step: e.score(name) for e in evaluations}
    return {step: (s.value, s.stderr or 0.0) for step, s in found.items() if s}


def best_line(evaluations: Sequence[Evaluation]) -> str:
    """Return `best: step 300, likeness 0.65, the highest`."""
    best = best_of(evaluations)
    if best is None:
        return "no step can be named the best: no sample's prompt names the subject"
    return f"best: step {best[0]} ({best[1]})"


def json_text(evaluations: Sequence[Evaluation]) -> str:
    """Return all numbers as JSON; with several steps the best one, too."""
    best = best_of(evaluations) if len(evaluations) > 1 else None
    data = {
        "version": 1,
        "evaluations": [evaluation.as_dict() for evaluation in evaluations],
        "best": None if best is None else {"step": best[0], "why": best[1]},
    }
    return json.dumps(data, indent=2, ensure_ascii=True) + "\n"


def csv_text(evaluations: Sequence[Evaluation]) -> str:
    """Return a row a step and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for evaluation in evaluations:
        for score in evaluation.scores:
            row = {"step": evaluation.step, **vars(score)}
            writer.writerow(["" if row[name] is None else row[name] for name in COLUMNS])
    return out.getvalue()
