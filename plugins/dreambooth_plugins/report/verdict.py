"""Which step came out best, and how the run went in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreambooth_plugins.report.document import Evaluation, Finding, Measure

LIKENESS, FREEDOM = "subject_similarity", "prompt_alignment"
UNKNOWN = 0.01
"""Standard error of a measure that came without one."""


def _error(measure: Measure) -> float:
    return UNKNOWN if measure.stderr is None else measure.stderr


def best_of(evaluations: list[Evaluation]) -> Evaluation | None:
    """Return the step that is most like the subject among those that still obey the prompts.

    A step obeys where its prompt alignment is within two standard errors (of the difference) of
    the best step's. Steps measured by another encoder than the last one's are not compared.
    """
    if not evaluations:
        return None
    same = [e for e in evaluations if e.encoder == evaluations[-1].encoder]
    alike = [(e, m) for e in same if e.step > 0 and (m := e.measure(LIKENESS))]
    free = [m for e, _ in alike if (m := e.measure(FREEDOM))]
    if free:
        top = max(free, key=lambda m: m.value)

        def obeys(evaluation: Evaluation) -> bool:
            mine = evaluation.measure(FREEDOM)
            if mine is None:
                return False
            slack = 2 * (_error(mine) ** 2 + _error(top) ** 2) ** 0.5
            return bool(mine.value >= top.value - slack)

        alike = [(e, m) for e, m in alike if obeys(e)]
    return max(alike, key=lambda pair: pair[1].value)[0] if alike else None


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
