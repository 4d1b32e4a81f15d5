"""The samples of a run, step by step, measured as they lie there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dreambooth.engine.results.contact import sample_sets
from dreambooth.engine.results.samples import Picture, evidence, read_pictures
from dreambooth.errors import RunError
from dreambooth.files import write_json
from dreambooth.interfaces import Evaluation
from dreambooth.runs.evaluations import OWN, SAMPLES, evaluation_file, id_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import Metric, Scan, Score
    from dreambooth.runs.folder import RunFolder


def complete_sets(folder: RunFolder) -> list[tuple[int, list[Picture]]]:
    """Return the samples of every step; `RunError` names a set whose pictures are gone."""
    found = []
    for step, where in sample_sets(folder.samples):
        pictures = read_pictures(where)
        listed = len(list(where.glob("[0-9]*.png")))
        if not pictures or len(pictures) < listed or len(pictures) % max(1, _prompts(pictures)):
            raise RunError(
                f"{where} is not whole: {len(pictures)} pictures can be read",
                "measure the weights instead, without --all-steps, or remove that folder",
            )
        found.append((step, pictures))
    if not any(step for step, _ in found):
        raise RunError(
            f"{folder.path} has no samples that were drawn while training",
            "set samples.every in the job, or leave --all-steps out: pictures are drawn then",
        )
    if len({len(pictures) for _, pictures in found}) > 1:
        counts = ", ".join(f"step {step}: {len(pictures)}" for step, pictures in found)
        raise RunError(
            f"the steps of {folder.path} have different numbers of pictures ({counts})",
            "pictures were removed, or the job's prompts changed: remove what differs",
        )
    return found


def _prompts(pictures: Sequence[Picture]) -> int:
    return len({p.prompt for p in pictures})


def measure_sets(
    ctx: EngineContext,
    folder: RunFolder,
    scan: Scan,
    metrics: Sequence[Metric],
    sets: Sequence[tuple[int, list[Picture]]],
    *,
    own: bool = False,
) -> list[Evaluation]:
    """Measure the samples of every step against those of step 0, and write the numbers.

    `own`: as the run itself does at its end, whatever lies there from before.
    """
    untrained = next((found for at, found in sets if at == 0), [])
    settings = {"prompts": SAMPLES}
    made = [
        measure_step(ctx, scan, metrics, at, found, untrained, settings) for at, found in sets if at
    ]
    return write_evaluations(folder, made, SAMPLES, own=own)


def write_evaluations(
    folder: RunFolder, evaluations: Sequence[Evaluation], pictures: str, *, own: bool = False
) -> list[Evaluation]:
    """Write the numbers of one set of prompts; see `runs.evaluations` for what `pictures` is."""
    if not evaluations:
        return []
    last = evaluations[-1]
    measures = {(score.name, score.encoder) for e in evaluations for score in e.scores}
    id = OWN if own else id_of(folder, pictures, last.step, measures)
    written = [replace(e, file=evaluation_file(folder, e.step, id)) for e in evaluations]
    for evaluation in written:
        write_json(evaluation.file, evaluation.as_dict())
    return written


def measure_step(
    ctx: EngineContext,
    scan: Scan,
    metrics: Sequence[Metric],
    step: int,
    pictures: Sequence[Picture],
    untrained: Sequence[Picture],
    settings: dict[str, Any],
) -> Evaluation:
    """Measure the pictures of one step; nothing is written yet."""
    shown = evidence(ctx, scan, pictures, untrained)
    scores: list[Score] = []
    with ctx.progress(f"Measuring step {step}", len(metrics)) as progress:
        for metric in metrics:
            scores += metric.measure(shown, ctx)
            progress.advance()
    settings = {**settings, "photographs": len(shown.instances)}
    return Evaluation(step, scores, shown.drawings, ctx.folder, settings)
