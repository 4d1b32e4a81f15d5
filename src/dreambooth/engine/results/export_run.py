"""Exports of a run that was trained before: another format, without training."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.results.card import CARD_FILES, Facts, write_card
from dreambooth.engine.results.draw import open_weights
from dreambooth.engine.results.exports import export_one, with_facts
from dreambooth.engine.session import trainable
from dreambooth.engine.watching.failures import explained
from dreambooth.errors import JobError, RunError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.nn import Parameter

    from dreambooth.engine.reporting import Reporter
    from dreambooth.engine.results.exports import Export
    from dreambooth.interfaces import Exporter, LoadedModel
    from dreambooth.job import Job
    from dreambooth.runs.folder import RunFolder


def export_run(
    folder: RunFolder,
    job: Job,
    exporter: Exporter,
    reporter: Reporter,
    *,
    dest: Path | None = None,
    check: bool = True,
) -> tuple[Export, str]:
    """Write a run's result into `dest` (by default `exports/<kind>/` of the run).

    Returns the export, and where its weights came from: the newest checkpoint (the best one where
    the job exports that; its average where there is one), or `final`. Everything is computed in
    float32, whatever the run trained in, so that what is compared is the file. Raises `JobError`
    for a destination that holds something else, `RunError` where there is nothing to export yet
    and, with `check`, where the file read back differs from the live model.
    """
    inside = dest is None
    dest = dest if dest is not None else folder.export(exporter.kind)
    if not inside and dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise JobError(f"{dest} holds something already", "name a new or an empty folder in --dest")
    with ExitStack() as stack:
        stack.enter_context(explained(job, folder))
        if inside:
            stack.enter_context(folder.lock(reporter.warn))
        devices = stack.enter_context(open_devices(job.train))
        precision = Precision("fp32", devices.device)
        ctx = EngineContext(job, devices.device, precision, folder.path, reporter, devices)
        model, weights, source = open_result(ctx, folder)
        manifest = folder.read_manifest()
        facts = facts_of(manifest, source)
        artifact = job.freezing.artifact(model, {n: p.detach() for n, p in weights.items()})
        artifact = with_facts(artifact, {"steps": facts.steps, "images": facts.images})
        solver = job.scheduler.open(model.info).solver_config(
            job.data.size, job.sampler.sampling_steps()
        )
        with ctx.progress(f"Exporting {exporter.kind}", 2 if check else 1) as progress:
            made = export_one(exporter, artifact, model, dest, ctx, solver, progress, check=check)
        write_card(job, model.info, folder, made, facts)
        if inside and manifest.get("result"):
            record(folder, made.folder, manifest["result"])
    return made, source


def open_result(
    ctx: EngineContext, folder: RunFolder
) -> tuple[LoadedModel, Mapping[str, Parameter], str]:
    """Open the live model of a run; return also what it trained, and where that came from.

    As `open_weights`; a run without checkpoints that ended in whole weights is opened from
    `final/`.
    """
    try:
        return open_weights(ctx, folder)
    except RunError:
        whole = folder.result_is_whole() and (folder.final / "model_index.json").is_file()
        if not whole or ctx.job.freezing.artifacts != {"weights"}:
            raise
    model = ctx.job.model.at(folder.final).open(ctx)
    ctx.job.freezing.prepare(model, ctx)
    return model, trainable(model, ctx.job.freezing), "final"


def facts_of(manifest: Mapping[str, Any], source: str) -> Facts:
    """Return what the card tells of a run: its result, or as far as it came."""
    result = manifest.get("result") or {}
    steps = int(source.removeprefix("step-")) if source.startswith("step-") else 0
    ended = bool(result) and steps in (0, result["steps"])
    return Facts(
        steps=steps or result.get("steps", 0),
        images=len(manifest.get("images", ())),
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
