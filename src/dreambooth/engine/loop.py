"""The run: set-up, resume, the training loop, its events, the end. One loop, top to bottom."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.engine.checkpoints.best import show_best
from dreambooth.engine.checkpoints.restoring import restore
from dreambooth.engine.checkpoints.resuming import begin, newest_of_all, set_aside, together
from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.events import Events
from dreambooth.engine.manifest import (
    check_content,
    check_environment,
    check_inputs,
    describe_run,
)
from dreambooth.engine.reporting import Logged, Quiet
from dreambooth.engine.results.card import write_card
from dreambooth.engine.results.conclusion import conclude
from dreambooth.engine.results.exports import export_all, facts_now
from dreambooth.engine.session import Session, open_session
from dreambooth.engine.step import Meter, settle_compiling, train_step
from dreambooth.engine.watching.failures import explained
from dreambooth.engine.watching.hanging import Fed, watching
from dreambooth.engine.watching.stopping import Asked, stop_requests
from dreambooth.errors import Interrupted, RunError
from dreambooth.helpers.random import kept_generators
from dreambooth.jobs.checks import require
from dreambooth.jobs.identifiers import settled
from dreambooth.jobs.loading import dump_job
from dreambooth.jobs.samplers import with_prompts
from dreambooth.plugins.faults import remarks_to
from dreambooth.process.launcher import require_environment
from dreambooth.runs.findings import read_findings
from dreambooth.runs.folder import RunFolder
from dreambooth.runs.manifest import checked_pins
from dreambooth.runs.result import RunResult, newest_checkpoint, result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dreambooth.engine.devices.processes import Devices
    from dreambooth.engine.reporting import Reporter
    from dreambooth.engine.results.card import Export
    from dreambooth.engine.step import StepResult
    from dreambooth.job import Job
    from dreambooth.runs.outlook import Outlook


UNMOVED = 20
"""After so many steps without any gradient nothing will ever move."""


def run(
    job: Job,
    *,
    fresh: bool = False,
    resume_from: str | None = None,
    reporter: Reporter | None = None,
    leave: Callable[[RunError], None] | None = None,
) -> RunResult:
    """Run a job to its end and return what it made.

    The same call again resumes an interrupted run and returns at once for a finished one.
    `fresh` sets an existing run of that name aside (as `<name>.old-N`) and starts anew;
    `resume_from` goes back to one of the run's checkpoints, or begins at another run's (see
    `runs.outlook.find_checkpoint`). Raises `UserError` (see `dreambooth.errors`) for whatever the
    person can mend; a signal while training saves a checkpoint and raises `Interrupted` (SIGUSR1
    saves alone; see `dreambooth.process`). Where several processes run one job, each calls this.
    `leave` has to end the process when the run hangs (`train.hang_timeout`); without it that is
    a warning, for no code of ours ends a program that calls this.
    """
    job = settled(with_prompts(job))
    require(job)
    require_environment()
    folder = RunFolder(job.folder)
    with ExitStack() as stack:
        watch = stack.enter_context(watching(job, folder, leave))
        reporter = Fed(reporter or Quiet(), watch)
        devices = stack.enter_context(open_devices(job.train, watch.moved))
        watch.join(devices)
        stack.enter_context(explained(job, folder))
        stack.enter_context(remarks_to(reporter.warn))

        def beginning() -> Outlook:
            nonlocal reporter
            assert reporter is not None
            if fresh:
                set_aside(folder, reporter)
            stack.enter_context(folder.lock(reporter.warn))
            reporter = Logged(reporter, folder.log)
            return begin(job, folder, devices, reporter, resume_from)

        outlook = together(devices, beginning)
        if outlook.finished:
            return result_of(folder, outlook.finished, already_finished=True)
        return fit(job, folder, devices, reporter, outlook)


def fit(
    job: Job, folder: RunFolder, devices: Devices, reporter: Reporter, outlook: Outlook
) -> RunResult:
    """Train from the newest checkpoint (or from the start) to the last step, then export.

    `outlook` tells of the run as it was before this life of it.
    """
    manifest = outlook.manifest
    began = time.monotonic()
    ctx = context_of(job, folder, devices, reporter, manifest)
    found = newest_of_all(devices, folder, ctx.warn)
    scan = job.data.scan(ctx)
    check_content(ctx, scan, outlook)
    if ctx.is_main:
        folder.begin(job, dump_job(job), devices.world_size)
    session = open_session(ctx, scan)
    described = describe_run(session)
    check_inputs(ctx, manifest, described)
    if ctx.is_main:
        folder.update_manifest(**described)
    meter = Meter()
    with ExitStack() as stack:
        # Steps seed torch's global generators; whoever called gets theirs back.
        stack.enter_context(kept_generators(devices.device))
        stack.callback(session.batches.reader.close)
        if found:
            restore(session.state, meter, found)
            reporter.info(f"resuming from step {session.state.step} of {job.train.steps}")
        state = session.state
        compiled = settle_compiling(session, manifest.get("compiled"))
        with stop_requests(devices) as stop:
            events = stack.enter_context(Events(session, folder, meter, stop).opened(found))
            with reporter.training(state.step, job.train.steps):
                events.at_start()
                if ctx.is_main:
                    ready = round(time.monotonic() - began, 3)
                    folder.update_manifest(first_step_seconds=ready, compiled=compiled)
                if state.step == 0:
                    reporter.step(0)
                before = snapshot(session) if state.step == 0 else None
                while state.step < job.train.steps and not events.stopped:
                    heed(stop.agreed(), events, session)
                    result = train_step(session)
                    record(meter, result)
                    if before is not None:
                        before = check_moved(session, before, result)
                    events.after_step(result)
                    reporter.step(state.step)
            events.at_end()
            heed(Asked(stop.settle()), events, session)
        reporter.info(f"trained to step {state.step}; exporting")
        if ctx.is_main:
            show_best(session, events.best, folder.checkpoints)
        session.state.end()
        session.parallel.end()
        session.enter("export")
        exports = devices.share(export_all(session, folder) if ctx.is_main else [])
        return finish(session, folder, events, exports)


def context_of(
    job: Job, folder: RunFolder, devices: Devices, reporter: Reporter, manifest: Mapping[str, Any]
) -> EngineContext:
    """Return the run's context, in the precision it began with, and say where it runs."""
    recorded = manifest.get("machine", {})
    precision = devices.share(precision_of(job, devices.device, recorded.get("precision")).name)
    where = f"{devices.describe()} ({precision})"
    reporter.info(f"run {job.name} on {where}, {job.train.steps} steps")
    ctx = EngineContext(
        job, devices.device, Precision(precision, devices.device), folder.path, reporter, devices
    )
    ctx.pins = checked_pins(manifest)
    check_environment(ctx, recorded)
    return ctx


def record(meter: Meter, result: StepResult) -> None:
    """Add a step's numbers to the running means, unless nothing was updated.

    A loss that is not finite counts whatever the scaler did: the next look at the means finds it.
    """
    if result.skipped:
        return
    counts = None
    if result.overflowed is not None:
        counts = ~(result.overflowed & torch.isfinite(result.loss))
    meter.add(
        counts,
        loss=result.loss,
        loss_instance=result.loss_instance,
        loss_prior=result.loss_prior,
        grad_norm=result.grad_norm,
    )


def snapshot(session: Session) -> dict[str, torch.Tensor]:
    """Copy some of what trains in the first step, smallest first, a few megabytes at most."""
    kept: dict[str, torch.Tensor] = {}
    room = 2_000_000
    learning = session.stages.at(session.state.step).names
    learning_first = {n: p for n, p in session.state.parameters.items() if n in learning}
    for name, p in sorted(learning_first.items(), key=lambda pair: pair[1].numel()):
        if p.numel() > room and kept:
            break
        kept[name] = p.detach().clone()
        room -= p.numel()
    return kept


def check_moved(
    session: Session, before: dict[str, torch.Tensor], result: StepResult
) -> dict[str, torch.Tensor] | None:
    """After the first update with a rate above zero something must have moved.

    A finite loss over weights that never change is a known silent failure. Returns None once
    the check is done; a step that float16 scaling skipped is no update. Where all gradients are
    zero, the next steps may tell: a word that learns is in no prompt of a step whose captions
    were dropped.
    """
    rates = [group["lr"] for group in session.state.optimizer.param_groups]
    if not any(rates) or not torch.isfinite(result.grad_norm):
        return before
    parameters = session.state.parameters
    if any(not torch.equal(parameters[n].detach(), old) for n, old in before.items()):
        return None
    if not result.grad_norm and session.state.step < min(UNMOVED, session.job.train.steps):
        return before
    raise RunError(
        f"nothing that should train has moved after step {session.state.step}",
        "the freezing policy and the loss do not touch each other, or the learning rate is so "
        "low that updates vanish: check freezing and optimizer.lr",
    )


def heed(asked: Asked, events: Events, session: Session) -> None:
    """Save where that was asked for, and leave where the end was."""
    step = session.state.step
    if step and (asked.stop or asked.save):
        events.save()
        session.ctx.reporter.info(f"step {step} is saved, as a signal asked for")
    if asked.stop:
        saved = f"saved in {session.ctx.folder}" if step else "there is nothing to save yet"
        raise Interrupted(
            f"stopped by {signal.Signals(asked.stop).name} at step {step} of "
            f"{session.job.train.steps}; {saved}",
            "run the same command again to go on from there",
            asked.stop,
        )


def finish(session: Session, folder: RunFolder, events: Events, exports: list[Export]) -> RunResult:
    """Record the result; from here on the run counts as finished."""
    files: dict[str, int] = {}
    if session.ctx.is_main:
        for written in [e.folder for e in exports] or [newest_checkpoint(folder)]:
            files |= folder.listing(written)
        conclude(session.ctx, folder, session.scan, session.model.info)
        write_cards(session, folder, events, exports)
    done = {
        "steps": session.state.step,
        "checks": [f"{e.kind}: {e.check.message}" for e in exports],
        "scalars": dict(events.scalars),
        "stop": events.stopped,
        "for_good": events.final,
        "kept": events.best.outcome(),
        "files": files,
        "exported": bool(exports),
    }
    if session.ctx.is_main:
        folder.update_manifest(result=done)
    return result_of(folder, done)


def write_cards(session: Session, folder: RunFolder, events: Events, exports: list[Export]) -> None:
    """Put a model card beside every export."""
    facts = replace(
        facts_now(session),
        scalars=dict(events.scalars),
        kept=events.best.why(),
        stopped=events.stopped,
        findings=[row["sentence"] for row in read_findings(folder)],
    )
    for export in exports:
        write_card(session.job, session.model.info, folder, export, facts)
