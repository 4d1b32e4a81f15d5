"""The run: set-up, resume, the training loop, its events, the end. One loop, top to bottom."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.checks import require
from dreambooth.engine import checkpoint
from dreambooth.engine.beginning import begin, set_aside
from dreambooth.engine.best import show_best
from dreambooth.engine.compiling import settle as settle_compiling
from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices import open_devices
from dreambooth.engine.events import Events
from dreambooth.engine.export import export_all
from dreambooth.engine.manifest import check_environment, check_inputs, describe_run
from dreambooth.engine.model_card import Facts, write_card
from dreambooth.engine.precision import Precision, resolve
from dreambooth.engine.reporting import Logged, Quiet
from dreambooth.engine.restoring import restore
from dreambooth.engine.session import Session, open_session
from dreambooth.engine.step import Meter, train_step
from dreambooth.engine.stopping import stop_requests
from dreambooth.engine.trouble import explained
from dreambooth.errors import Interrupted, RunError
from dreambooth.identifiers import settled
from dreambooth.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreambooth.engine.devices import Devices
    from dreambooth.engine.export import Export
    from dreambooth.engine.reporting import Reporter
    from dreambooth.engine.step import StepResult
    from dreambooth.job import Job


UNMOVED = 20
"""After so many steps without any gradient nothing will ever move."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind."""

    folder: Path
    steps: int
    final: Path
    checks: tuple[str, ...]
    """One line an export: how it compared when it was loaded back."""
    scalars: dict[str, float]
    """The last logged numbers."""
    already_finished: bool = False
    kept: str = ""
    """Which step `checkpoints.keep_best` kept and why; empty without it."""
    stopped: str = ""
    """Why the run ended before its last step; empty where it did not."""
    for_good: bool = False
    """Whether that ended it for good, so that the same command does not go on with it."""


def run(
    job: Job,
    *,
    fresh: bool = False,
    resume_from: str | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Run a job to its end and return what it made.

    The same call again resumes an interrupted run and returns at once for a finished one.
    `fresh` sets an existing run of that name aside (as `<name>.old-N`) and starts anew;
    `resume_from` goes back to one of the run's checkpoints, or begins at another run's (see
    `beginning.go_back`). Raises `UserError` (see `dreambooth.errors`) for whatever the person can
    mend; a first SIGINT or SIGTERM while training saves a checkpoint and raises `Interrupted`.
    Where several processes run one job, each of them calls this.
    """
    reporter = reporter or Quiet()
    job = settled(job)
    require(job)
    folder = RunFolder(job.folder)
    with open_devices(job.train) as devices, explained(job, folder), ExitStack() as stack:
        begun = None
        if devices.is_main:
            if fresh:
                set_aside(folder, reporter)
            stack.enter_context(folder.lock())
            reporter = Logged(reporter, folder.log)
            begun = begin(job, folder, devices, reporter, resume_from)
        begun = devices.share(begun)
        assert begun is not None
        if begun.done:
            return result_of(folder, begun.done, already_finished=True)
        return fit(job, folder, devices, reporter, begun.manifest)


def result_of(
    folder: RunFolder, done: Mapping[str, Any], *, already_finished: bool = False
) -> RunResult:
    """Return the result as the manifest records it."""
    return RunResult(
        folder.path,
        done["steps"],
        folder.final,
        tuple(done["checks"]),
        dict(done["scalars"]),
        already_finished,
        (done.get("kept") or {}).get("why", ""),
        done.get("stop", ""),
        done.get("for_good", False),
    )


def fit(
    job: Job, folder: RunFolder, devices: Devices, reporter: Reporter, manifest: Mapping[str, Any]
) -> RunResult:
    """Train from the newest checkpoint (or from the start) to the last step, then export.

    `manifest` is the run's as it was before this life of it.
    """
    began = time.monotonic()
    recorded = manifest.get("machine", {})
    precision = devices.share(resolve(job, devices.device, recorded.get("precision")).name)
    where = f"{devices.describe()} ({precision})"
    reporter.info(f"run {job.name} on {where}, {job.train.steps} steps")
    ctx = EngineContext(
        job, devices.device, Precision(precision, devices.device), folder.path, reporter, devices
    )
    check_environment(ctx, recorded)
    found = checkpoint.newest(folder.checkpoints, ctx.warn)
    session = open_session(ctx, job.data.scan(ctx))
    described = describe_run(session)
    check_inputs(ctx, manifest, described)
    if ctx.is_main:
        folder.update_manifest(**described)
    meter = Meter()
    with ExitStack() as stack:
        # Steps seed torch's global generators; whoever called gets theirs back.
        gpus = [devices.device] if devices.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(gpus))
        stack.callback(session.batches.reader.close)
        if found:
            restore(session.state, meter, found)
            reporter.info(f"resuming from step {session.state.step} of {job.train.steps}")
        state = session.state
        compiled = settle_compiling(session, manifest.get("compiled"))
        events = stack.enter_context(Events(session, folder, meter).opened(found))
        if ctx.is_main:
            ready = round(time.monotonic() - began, 3)
            folder.update_manifest(first_step_seconds=ready, compiled=compiled)
        with stop_requests(devices) as stop, reporter.training(state.step, job.train.steps):
            before = snapshot(session) if state.step == 0 else None
            while state.step < job.train.steps and not events.stopped:
                result = train_step(session)
                record(meter, result)
                if before is not None:
                    before = check_moved(session, before, result)
                events.after_step(result)
                reporter.step(state.step)
                if number := stop.agreed():
                    interrupt(events, session, number)
        events.at_end()
        reporter.info(f"trained to step {state.step}; exporting")
        if ctx.is_main:
            show_best(session, events.best, folder.checkpoints)
        session.state.end()
        session.enter("export")
        exports = devices.share(export_all(session, folder) if ctx.is_main else [])
        return finish(session, folder, events, exports)


def record(meter: Meter, result: StepResult) -> None:
    """Add a step's numbers to the running means."""
    if result.skipped:
        return
    meter.add(
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


def interrupt(events: Events, session: Session, number: int) -> None:
    """Save and leave."""
    events.save()
    step = session.state.step
    raise Interrupted(
        f"stopped by {signal.Signals(number).name} at step {step} of {session.job.train.steps}; "
        f"saved in {session.ctx.folder}",
        "run the same command again to go on from there",
        number,
    )


def finish(session: Session, folder: RunFolder, events: Events, exports: list[Export]) -> RunResult:
    """Record the result; from here on the run counts as finished."""
    files: dict[str, int] = {}
    if session.ctx.is_main:
        for export in exports:
            files |= folder.listing(export.folder)
        write_cards(session, folder, events, exports)
    done = {
        "steps": session.state.step,
        "checks": [f"{e.kind}: {e.check.message}" for e in exports],
        "scalars": dict(events.scalars),
        "stop": events.stopped,
        "for_good": events.final,
        "kept": events.best.outcome(),
        "files": files,
    }
    if session.ctx.is_main:
        folder.update_manifest(result=done)
    return result_of(folder, done)


def write_cards(session: Session, folder: RunFolder, events: Events, exports: list[Export]) -> None:
    """Put a model card beside every export."""
    facts = Facts(
        steps=session.state.step,
        images=len(session.scan.items),
        precision=session.ctx.precision.name,
        scalars=dict(events.scalars),
        kept=events.best.why(),
        stopped=events.stopped,
    )
    for export in exports:
        write_card(session.job, session.model.info, folder, export, facts)
