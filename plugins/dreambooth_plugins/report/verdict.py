"""Which step came out best, and how the run went in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth_plugins.common.best import best_step
from dreambooth_plugins.report.document import comparable

if TYPE_CHECKING:
    from dreambooth_plugins.report.document import Evaluation, Finding, Measure

LIKENESS, FREEDOM = "subject_similarity", "prompt_alignment"
UNKNOWN = 0.01
"""Standard error of a measure that came without one."""


def _error(measure: Measure) -> float:
    return UNKNOWN if measure.stderr is None else measure.stderr


def best_of(evaluations: list[Evaluation]) -> Evaluation | None:
    """Return the best step after step 0 (see `common.best`) of those that compare."""
    same = {e.step: e for e in comparable(evaluations) if e.step > 0}
    step = best_step(_by_step(same, LIKENESS), _by_step(same, FREEDOM))
    return None if step is None else same[step]


def _by_step(evaluations: dict[int, Evaluation], name: str) -> dict[int, tuple[float, float]]:
    found = {step: e.measure(name) for step, e in evaluations.items()}
    return {step: (m.value, _error(m)) for step, m in found.items() if m}


def verdict_of(
    evaluations: list[Evaluation], findings: list[Finding], steps: int, pictures: bool
) -> tuple[str, int | None]:
    """Return the sentence at the top of the page, and the step to use where one is known."""
    best = best_of(evaluations)
    problem = next((f.sentence for f in findings if f.mark == "problem"), "")
    if best is not None and (likeness := best.measure(LIKENESS)) is not None:
        # One rule decides what counts as learned, and the findings say what it decided.
        learned = any(f.id == "learned" and f.mark == "good" for f in findings)
        said = _on_likeness(best.step, likeness, learned)
        return f"{said} {problem}".strip(), best.step
    if problem:
        return problem, None
    if findings:
        return findings[0].sentence, None
    if not pictures:
        return (
            f"Trained for {steps} steps. No pictures were drawn, so there is nothing to see.",
            None,
        )
    return (
        f"Trained for {steps} steps. Nothing has been measured on it: "
        "look at the pictures below and judge for yourself.",
        None,
    )


def _on_likeness(step: int, m: Measure, learned: bool) -> str:
    error = _error(m)
    if m.real is not None and m.value >= m.real - 2 * error:
        return (
            f"Good likeness at step {step}: its pictures are as close to your photographs as these "
            f"are to each other ({m.value:.2f} against {m.real:.2f})."
        )
    ceiling = "" if m.real is None else f", between your photographs {m.real:.2f}"
    if learned:
        return f"Good likeness at step {step}: {m.value:.2f}{ceiling}."
    if m.baseline is None:
        return f"Most like your photographs at step {step} ({m.value:.2f}{ceiling})."
    if m.value > m.baseline + 2 * error:
        return (
            f"Some likeness at step {step}: {m.value:.2f} "
            f"(before training {m.baseline:.2f}{ceiling})."
        )
    return (
        f"It has not learned your subject yet: likeness {m.value:.2f} at step {step}, "
        f"before training {m.baseline:.2f}."
    )
