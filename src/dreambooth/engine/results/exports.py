"""Exports: what the run made, written by exporter plugins, loaded back and compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from dreambooth.errors import RunError
from dreambooth.files import disk_is_full, new_folder
from dreambooth.interfaces import Check
from dreambooth.jobs.exporters import chosen_exporters
from dreambooth.plugins.faults import is_ours, plugin_fault, refused
from dreambooth.runs.checkpoints import reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dreambooth.engine.session import Session
    from dreambooth.interfaces import Artifact, Context, Exporter, LoadedModel, Progress
    from dreambooth.job import Job
    from dreambooth.runs.folder import RunFolder


@dataclass(frozen=True)
class Export:
    """One finished export."""

    kind: str
    folder: Path
    check: Check
    exporter: Exporter


def exporters_for(session: Session, artifact_kind: str) -> Sequence[Exporter]:
    """Return the job's exporters that take this kind of artifact; `RunError` if none does."""
    fitting = [
        e
        for e in chosen_exporters(session.job)
        if artifact_kind in e.accepts and not e.refusal(session.job.freezing)
    ]
    if not fitting:
        raise RunError(
            f'no exporter of this job can write "{artifact_kind}", which the freezing policy makes',
            "name an exporter that can in exports (dbt plugins list shows the installed ones)",
        )
    return fitting


def with_facts(artifact: Artifact, facts: Mapping[str, Any]) -> Artifact:
    """Return an artifact that also knows of the run: `steps` and `images`."""
    return replace(artifact, metadata={**artifact.metadata, **facts})


def export_all(session: Session, folder: RunFolder) -> list[Export]:
    """Write every export into place and check each by loading it back.

    The first lies in `final/`, further ones in `exports/<kind>/`. An export that does not come
    back as it was written is a failure: `RunError`.
    """
    ctx, model, job = session.ctx, session.model, session.job
    facts = {"steps": session.state.step, "images": len(session.scan.items)}
    artifact = with_facts(job.freezing.artifact(model, session.state.result()), facts)
    sampling = job.sampler.sampling_steps()
    solver = session.schedule.solver_config(job.data.size, sampling)
    done: list[Export] = []
    chosen = exporters_for(session, artifact.kind)
    with (
        session.state.showing_result(),
        session.stages.without_kept_texts(),
        ctx.progress("Exporting", 2 * len(chosen)) as progress,
    ):
        for number, exporter in enumerate(chosen):
            dest = folder.final if number == 0 else folder.export(exporter.kind)
            done.append(export_one(exporter, artifact, model, dest, ctx, solver, progress))
    return done


def export_one(
    exporter: Exporter,
    artifact: Artifact,
    model: LoadedModel,
    dest: Path,
    ctx: Context,
    solver_config: Mapping[str, Any],
    progress: Progress,
    *,
    check: bool = True,
) -> Export:
    """Write one format and compare what is read back; two units of progress.

    The files get their place `dest` when they were compared: what lies there is good, and what lay
    there before stays until then. Raises `RunError` where the disk refuses, or where the files
    differ from the live model.
    """
    try:
        with new_folder(dest) as beside:
            exporter.write(artifact, model, beside, ctx, solver_config)
            if not any(beside.iterdir()):
                raise refused(exporter, "write", "wrote no file")
            progress.advance()
            found = Check(True, "")
            if check:
                found = verified(exporter, artifact, model, beside, ctx)
                progress.advance()
    except (OSError, SafetensorError) as error:
        fault = None if is_ours(exporter) else plugin_fault(error)
        if fault is not None and not (isinstance(error, OSError) and disk_is_full(error)):
            raise fault from error
        raise RunError(
            f"cannot write {dest}: {reason(error)}",
            "the last checkpoint is intact: make room and run the same command again",
        ) from error
    return Export(exporter.kind, dest, found, exporter)


def verified(
    exporter: Exporter, artifact: Artifact, model: LoadedModel, folder: Path, ctx: Context
) -> Check:
    """Compare what was written into `folder` with the live model; `RunError` where they differ."""
    hint = "it was not put in place, and the checkpoint is intact; please report this with the job"
    try:
        found = exporter.verify(artifact, model, folder, ctx)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the {exporter.kind} export cannot be read back: {reason(error)}", hint
        ) from error
    if not found.ok:
        raise RunError(
            f"the {exporter.kind} export differs from the trained model: {found.message}", hint
        )
    return found
