"""The samples of a run, step by step, measured as they lie there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.engine.results.contact import sample_sets
from dreambooth.engine.results.samples import Picture, evidence, read_pictures
from dreambooth.errors import RunError
from dreambooth.files import write_json
from dreambooth.interfaces import Evaluation

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
) -> list[Evaluation]:
    """Measure the samples of every step against those of step 0."""
    untrained = next((found for at, found in sets if at == 0), [])
    settings = {"prompts": "samples"}
    return [
        measure_step(ctx, folder, scan, metrics, at, found, untrained, settings)
        for at, found in sets
        if at
    ]


def measure_step(
    ctx: EngineContext,
    folder: RunFolder,
    scan: Scan,
    metrics: Sequence[Metric],
    step: int,
    pictures: Sequence[Picture],
    untrained: Sequence[Picture],
    settings: dict[str, Any],
) -> Evaluation:
    """Measure the pictures of one step, and write `evaluations/step-N.json`."""
    shown = evidence(ctx, scan, pictures, untrained)
    scores: list[Score] = []
    with ctx.progress(f"Measuring step {step}", len(metrics)) as progress:
        for metric in metrics:
            scores += metric.measure(shown, ctx)
            progress.advance()
    path = folder.path / "evaluations" / f"step-{step:06d}.json"
    settings = {**settings, "photographs": len(shown.instances)}
    made = Evaluation(step, scores, shown.drawings, path, settings)
    write_json(path, made.as_dict())
    return made
