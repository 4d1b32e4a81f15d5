"""Exports: what a run made, written by exporter plugins, loaded back and compared.

At the end of the run (`export_all`), or of a run that was trained before (`export_run`).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.machine import float32_products
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.results.card import CARD_FILES, Export, Facts, captions_of, write_card
from dreambooth.engine.results.weights import named_for, open_weights, require_steps, step_in
from dreambooth.engine.watching.failures import explained
from dreambooth.errors import JobError, RunError
from dreambooth.files import disk_is_full, new_folder
from dreambooth.interfaces import Check
from dreambooth.jobs.identifiers import chosen_exporters
from dreambooth.plugins.faults import is_ours, plugin_fault, refused
from dreambooth.runs.checkpoints import reason
from dreambooth.runs.findings import read_findings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dreambooth.engine.reporting import Reporter
    from dreambooth.engine.session import Session
    from dreambooth.interfaces import Artifact, Context, Exporter, LoadedModel, Progress
    from dreambooth.job import Job
    from dreambooth.runs.folder import RunFolder


def exporters_for(session: Session, artifact_kind: str) -> Sequence[Exporter]:
    """Return the job's exporters that take this kind of artifact; `RunError` if none does.

    None where the job says that it wants none (`exports: []`).
    """
    if not session.job.exporting.formats:
        return ()
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
    """Return an artifact that also knows of the run (see `told_of`)."""
    return replace(artifact, metadata={**artifact.metadata, **facts})


def so_far(session: Session) -> tuple[Artifact, Mapping[str, Any]]:
    """Return what a run has made by now, and the configuration of the solver that goes with it."""
    job = session.job
    made = job.freezing.artifact(session.model, session.state.result())
    sampling = job.sampler.sampling_steps()
    solver = session.schedule.solver_config(job.data.size, sampling)
    return with_facts(made, told_of(facts_now(session))), solver


def facts_now(session: Session) -> Facts:
    """Return what can be told of a run while it goes on."""
    items = session.scan.items
    return Facts(
        steps=session.state.step,
        images=len(items),
        captions=captions_of(session.job, items),
        precision=session.ctx.precision.name,
    )


def told_of(facts: Facts) -> dict[str, Any]:
    """Return what formats may say of a run: `steps`, `images` and `captions`."""
    return {"steps": facts.steps, "images": facts.images, "captions": dict(facts.captions)}


def export_all(session: Session, folder: RunFolder) -> list[Export]:
    """Write every export into place and check each by loading it back.

    The first lies in `final/`, further ones in `exports/<kind>/`. An export that does not come
    back as it was written is a failure: `RunError`.
    """
    ctx, model, job = session.ctx, session.model, session.job
    if not job.exporting.formats:
        ctx.reporter.info("exports is empty: the last checkpoint is the result")
        return []
    artifact, solver = so_far(session)
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
    """Compare what was written into `folder` with the live model; `RunError` where they differ.

    In whole float32: two layouts of one layer differ in TF32 by more than a check allows.
    """
    hint = "it was not put in place, and the checkpoint is intact; please report this with the job"
    try:
        with float32_products(tf32=False):
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


def export_run(
    folder: RunFolder,
    job: Job,
    exporter: Exporter,
    reporter: Reporter,
    *,
    dest: Path | None = None,
    check: bool = True,
    step: int | None = None,
) -> tuple[Export, str]:
    """Write a run's result into `dest` (by default `exports/<kind>/` of the run).

    With `step` it is what a checkpoint keeps of that step (`exports/<kind>-step-000100/`).
    Returns the export, and where its weights came from: the newest checkpoint (the best one where
    the job exports that; its average where there is one), an export of the step, or `final`.
    Everything is computed in float32, whatever the run trained in, so that what is compared is the
    file. Raises `JobError` for a destination that holds something else, `RunError` where there is
    nothing to export yet and, with `check`, where the file read back differs from the live model.
    """
    inside = dest is None
    dest = dest if dest is not None else folder.export(exporter.kind, step)
    if step is not None:
        require_steps(folder, job, [step])
    if not inside and dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise JobError(f"{dest} holds something already", "name a new or an empty folder in --dest")
    with ExitStack() as stack:
        stack.enter_context(explained(job, folder))
        if inside:
            stack.enter_context(folder.lock(reporter.warn))
        devices = stack.enter_context(open_devices(job.train))
        precision = Precision("fp32", devices.device)
        ctx = EngineContext(job, devices.device, precision, folder.path, reporter, devices)
        opened = open_weights(ctx, folder, step)
        if step is not None:
            ctx = replace(ctx, job=named_for(job, step))
        model, source = opened.model, opened.source
        manifest = folder.read_manifest()
        facts = facts_of(manifest, source)
        if step is not None:  # asked for, and not for being the best
            facts = replace(facts, kept="")
        sentences = [row["sentence"] for row in read_findings(folder)]
        facts = replace(facts, findings=sentences)
        artifact = job.freezing.artifact(
            model, {n: p.detach() for n, p in opened.parameters.items()}
        )
        artifact = with_facts(artifact, told_of(facts))
        solver = job.scheduler.open(model.info).solver_config(
            job.data.size, job.sampler.sampling_steps()
        )
        with ctx.progress(f"Exporting {exporter.kind}", 2 if check else 1) as progress:
            made = export_one(exporter, artifact, model, dest, ctx, solver, progress, check=check)
        write_card(ctx.job, model.info, folder, made, facts)
        if inside and manifest.get("result"):
            record(folder, made.folder, manifest["result"])
    return made, source


def facts_of(manifest: Mapping[str, Any], source: str) -> Facts:
    """Return what the card tells of a run: its result, or as far as it came."""
    result = manifest.get("result") or {}
    steps = step_in(source) or 0
    ended = bool(result) and steps in (0, result["steps"])
    return Facts(
        steps=steps or result.get("steps", 0),
        images=len(manifest.get("images", ())),
        captions=manifest.get("captions", {}),
        precision=manifest.get("machine", {}).get("precision", ""),
        scalars=result.get("scalars", {}) if ended else {},
        kept=(result.get("kept") or {}).get("why", ""),
        stopped=result.get("stop", "") if ended else "",
    )


def record(folder: RunFolder, dest: Path, result: Mapping[str, Any]) -> None:
    """Name the new files in the manifest's result, in place of those that lay there before."""
    under = dest.relative_to(folder.path).as_posix() + "/"
    kept = {n: size for n, size in result.get("files", {}).items() if not n.startswith(under)}
    if len(kept) == len(result.get("files", {})):
        return  # not of the run's own exports: nothing that it is held to
    files = {
        name: size
        for name, size in folder.listing(dest).items()
        if name.removeprefix(under) not in CARD_FILES
    }
    folder.update_manifest(result={**result, "files": {**kept, **files}})
