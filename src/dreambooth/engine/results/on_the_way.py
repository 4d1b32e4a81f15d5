"""Exports of steps on the way to the result: what was trained so far, in the job's formats."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dreambooth.engine.results.card import write_card
from dreambooth.engine.results.exports import (
    export_one,
    exporters_for,
    facts_now,
    so_far,
)
from dreambooth.engine.results.weights import named_for
from dreambooth.files import remove

if TYPE_CHECKING:
    from dreambooth.engine.session import Session
    from dreambooth.job import Exports, Job
    from dreambooth.runs.folder import RunFolder


def is_due(job: Job, step: int) -> bool:
    """Say whether `exports.every` asks for files of this step."""
    every = job.exporting.every
    return bool(every) and step > 0 and step % every == 0


def export_step(session: Session, folder: RunFolder) -> None:
    """Write what was trained so far into `exports/<kind>-step-<n>`; training is not touched by it.

    The files are those that `dbt export --step` writes, but for the comparison with the live
    model: a second model beside the one that trains has no place in the plan. What is there of
    the step from an earlier life is replaced. Raises `RunError` where the disk refuses.
    """
    job, step = session.job, session.state.step
    ctx = replace(session.ctx, job=named_for(job, step))
    artifact, solver = so_far(session)
    chosen = exporters_for(session, artifact.kind)
    label = f"Exporting step {step}"
    with session.state.showing_result(), ctx.progress(label, len(chosen)) as progress:
        for exporter in chosen:
            dest = folder.export(exporter.kind, step)
            made = export_one(
                exporter, artifact, session.model, dest, ctx, solver, progress, check=False
            )
            write_card(ctx.job, session.model.info, folder, made, facts_now(session))
    for old in superseded(job.exporting, [s for s, _, _ in folder.step_exports()], step):
        for exporter in chosen:
            remove(folder.export(exporter.kind, old))


def superseded(options: Exports, steps: list[int], written: int) -> list[int]:
    """Return the steps whose exports may go, now that those of step `written` are whole.

    Only of the steps that `every` asks for: others were exported by hand. Newer ones than
    `written` are of a life the run went back from: they are neither counted nor touched.
    """
    if options.keep_last is None:
        return []
    here = sorted({step for step in steps if step <= written and step % options.every == 0})
    return here[: -options.keep_last]
