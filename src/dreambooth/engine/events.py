"""What happens around steps, in a fixed order: log, validate, sample, checkpoint, callbacks."""

from __future__ import annotations

import math
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from dreambooth.engine.checkpoints import files, rotation
from dreambooth.engine.checkpoints.best import Best
from dreambooth.engine.checkpoints.restoring import taking_back
from dreambooth.engine.checkpoints.rotation import Pace
from dreambooth.engine.results import on_the_way
from dreambooth.engine.results.contact import write_contact_sheet
from dreambooth.engine.results.samples import (
    draw_samples,
    measured,
    read_pictures,
    write_pictures,
)
from dreambooth.engine.watching import nonfinite, validation
from dreambooth.engine.watching.observers import Observers
from dreambooth.engine.watching.stopping import LeftOut
from dreambooth.engine.watching.timings import Timings
from dreambooth.engine.watching.trackers import Trackers
from dreambooth.errors import RunError
from dreambooth.interfaces import RunView, Stop
from dreambooth.jobs.loading import dump_job

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dreambooth.engine.checkpoints.files import Checkpoint
    from dreambooth.engine.session import Session
    from dreambooth.engine.step import Meter, StepResult
    from dreambooth.engine.watching.stopping import StopRequest
    from dreambooth.interfaces.callback import Event
    from dreambooth.runs.folder import RunFolder


class Events:
    """The moments of a run and who hears of them."""

    def __init__(
        self, session: Session, folder: RunFolder, meter: Meter, stop: StopRequest
    ) -> None:
        self._session, self._folder, self._meter = session, folder, meter
        self._stop = stop
        self._ctx, self._job = session.ctx, session.job
        self.scalars: dict[str, float] = {}
        self.stopped = ""
        """Why a callback ended the run early; empty while nobody did."""
        self.final = False
        """Whether it was ended for good, so that the same command does not go on with it."""
        self.best = Best(self._job.checkpoints.keep_best)
        self._save_asked = False
        self._saved_at = -1
        self._done = {"validated": -1, "sampled": -1, "exported": -1}
        """The step at which each was done last."""
        self._place = folder.identity() if self._ctx.is_main else None
        trained = sum(p.numel() for p in session.state.parameters.values())
        assert self._ctx.devices is not None  # steps are taken on devices
        self._pace = Pace(self._job, self._ctx.devices, trained)
        self._timings = Timings(folder, session.state.step)

    @contextmanager
    def opened(self, found: Checkpoint | None) -> Iterator[Events]:
        """Open trackers and callbacks, and close the trackers whatever happens."""
        step = self._session.state.step
        self._observers = Observers(self._ctx)
        if found:
            self._saved_at = step
            with taking_back(found):
                self._observers.load(found.numbers["callbacks"])
                scalars = dict(found.numbers.get("scalars", {}))
                self.scalars = {name: float(value) for name, value in scalars.items()}
                kept = found.numbers.get("best")
                self.best.load(kept, self._folder.checkpoints, self._ctx.warn)
                # An older version's were done before the checkpoint of their step, always.
                done = found.numbers.get("looked", {})
                self._done = {name: int(done.get(name, step)) for name in self._done}
        if self._ctx.is_main:
            self._timings.begin()
        self._trackers = Trackers(self._ctx, step)
        try:
            if not found:
                self._trackers.text("job", dump_job(self._job))
            self._tell("start")
            yield self
        finally:
            self._trackers.close()

    def at_start(self) -> None:
        """Do what is due before the first step of this life, and was not done in the last one."""
        step = self._session.state.step
        self._look(step)
        if step and self._save_asked:
            self.save()
        self._observers.raise_failure()
        self._observers.states()  # what cannot be saved is told before the first step

    def after_step(self, result: StepResult) -> None:
        """Do what is due after a step."""
        step, job = self._session.state.step, self._job
        self._tell("step")
        if step % job.log.every == 0 or step == job.train.steps:
            self._log(step, result)
        self._look(step)
        due = rotation.is_due(job.checkpoints, step) or step == job.train.steps
        by_clock = self._pace.is_due()
        failed = self._observers.failure is not None
        if due or by_clock or self._save_asked or self.final or failed:
            self.save()
        self._observers.raise_failure()

    def _look(self, step: int, *, ended: bool = False) -> None:
        """Validate, draw and export what is due at a step and not done; asked to stop, leave it.

        The checkpoint then says so, and the run's next life begins with it.
        """
        try:
            if validation.is_due(self._job, step) and self._done["validated"] != step:
                self._stop.before_leisure()
                self.validate()
            if self._sample_due(step, ended) and self._done["sampled"] != step:
                self._stop.before_leisure()
                self.sample()
            if on_the_way.is_due(self._job, step) and self._done["exported"] != step:
                self._stop.before_leisure()
                self.export()
        except LeftOut:
            self._stop.settle()

    def _sample_due(self, step: int, ended: bool) -> bool:
        every, ended = self._job.samples.every, ended or self.final or step == self._job.train.steps
        return bool(every) and (step % every == 0 or ended)

    def at_end(self) -> None:
        """Draw and save where a callback ended the run early, then tell the callbacks."""
        self._look(self._session.state.step, ended=True)
        self.save()
        self._require_folder()  # what is exported goes there
        if not self._stop.settle():
            self._tell("end")
            self._observers.raise_failure()

    def save(self) -> None:
        """Write a checkpoint, unless this step has one."""
        step = self._session.state.step
        self._save_asked = False
        if step == self._saved_at:
            return
        self._require_finite(step)
        with self._pace.timed():
            self._write(step)
            self._ctx.share(None)  # nobody leaves before the checkpoint is whole
        self._saved_at = step
        self._tell("checkpoint")

    def _write(self, step: int) -> None:
        self._trackers.flush()
        if not self._ctx.is_main:
            return
        self._require_folder()
        numbers = {
            "train": self._session.state.numbers(),
            "meter": self._meter.state(),
            "callbacks": self._observers.states(),
            "best": self.best.state(),
            "scalars": self.scalars,
            "looked": dict(self._done),
        }
        options, best = self._job.checkpoints, self.best.step
        files.save(
            self._folder.checkpoints,
            step,
            self._session.state.tensors(),
            numbers,
            partial(rotation.superseded, options, written=step, best=best),
        )

    def _require_folder(self) -> None:
        """Write into the folder the run began in, or not at all."""
        if self._place is not None:
            self._folder.require_same(self._place)

    def _require_finite(self, step: int) -> None:
        """Keep weights that are not finite out of checkpoints: on a GPU nobody has looked yet."""
        means, count = self._meter.read(), int(self._meter.count)
        if not all(map(math.isfinite, means.values())):
            raise RunError(
                f"the loss or its gradient is not finite within the {count} steps before {step}",
                nonfinite.HINT,
            )
        nonfinite.check_scale(self._session)

    def validate(self) -> None:
        """Measure the loss on the fixed batch; training is not touched by it."""
        with self._session.during("validation"):
            losses = validation.losses(self._session, self._stop.look)
        self._done["validated"] = self._session.state.step
        self._publish(losses)
        self._tell("validate")

    def sample(self) -> None:
        """Draw the job's prompts from fixed seeds; training is not touched by it."""
        values: dict[str, float] | None = {}
        if self._ctx.is_main:
            values = None
            with suppress(LeftOut):  # the others wait to hear of it
                values = self._draw()
        values = self._ctx.share(values)
        if values is None:
            raise LeftOut
        self._done["sampled"] = self._session.state.step
        if values:
            self._publish(values)
        self._tell("sample")

    def export(self) -> None:
        """Write the result as it is at this step; training is not touched by it."""
        if self._ctx.is_main:
            self._require_folder()
            on_the_way.export_step(self._session, self._folder)
        self._ctx.share(None)  # nobody trains on while the weights are being read
        self._done["exported"] = self._session.state.step

    def _draw(self) -> dict[str, float]:
        self._require_folder()
        session, job = self._session, self._job
        step = session.state.step
        pictures = draw_samples(session, self._stop.look)
        facts = {"step": step, "run": job.name, "sampler": job.sampler.key()}
        folder = self._folder.samples / f"step-{step:06d}"
        try:
            sheet = write_pictures(folder, pictures, job.samples.per_prompt, facts)
            contact = write_contact_sheet(self._ctx, self._folder, session.scan, step)
        except OSError as error:
            raise RunError(
                f"cannot write samples into {folder}: {error.strerror or error}",
                "make room and run the same command again: it goes on from the last checkpoint",
            ) from error
        caption = " | ".join(job.subject.fill(e.prompt) for e in job.samples.entries)
        self._trackers.sheet(step, "samples", sheet, caption)
        if contact is not None:
            over_time = f"photographs, then samples up to step {step}"
            self._trackers.sheet(step, "contact_sheet", contact, over_time)
        self._trackers.weights(step, session.state.parameters)
        self._ctx.reporter.pictures(step, sheet)
        untrained = pictures
        if step:
            untrained = read_pictures(self._folder.samples / "step-000000")
        return measured(session, pictures, untrained, self._stop.look)

    def _log(self, step: int, result: StepResult) -> None:
        self._require_finite(step)
        means = self._meter.read() if int(self._meter.count) else {}  # all may be skipped
        values = {f"train/{name}": value for name, value in means.items()}
        if not self._job.prior.has_rows():
            values.pop("train/loss_prior", None)
        state = self._session.state
        values["train/lr"] = result.lr
        values |= self._job.optimizer.scalars(state.optimizer)
        values |= self._ctx.logged
        self._ctx.logged.clear()
        self._meter.reset()
        self._publish(values)
        if self._ctx.is_main:
            self._require_folder()
            self._timings.write(step)
        self._tell("log")

    def _publish(self, values: Mapping[str, float]) -> None:
        """Write numbers of this step everywhere; the best one yet is worth a checkpoint."""
        step = self._session.state.step
        # Files and callbacks get numbers: JSON has no other, and a mean of NaN says nothing.
        strange = sorted(name for name, value in values.items() if not math.isfinite(value))
        if strange:
            self._ctx.warn(f"not finite, and left out of what is logged: {', '.join(strange)}")
            values = {name: value for name, value in values.items() if name not in strange}
        self.scalars |= values
        self._trackers.scalars(step, values)
        self._ctx.reporter.scalars(step, values)
        self._saved_at = -1  # a checkpoint of this step would not know of them
        if self.best.see(step, values):
            self._save_asked = True

    def _tell(self, event: Event) -> None:
        job, state = self._job, self._session.state
        view = RunView(job, state.step, job.train.steps, dict(self.scalars), self._folder.path)
        for answer in self._observers.ask(event, view):
            if isinstance(answer, Stop):
                if not self.stopped or (answer.final and not self.final):
                    self.stopped = answer.reason
                self.final = self.final or answer.final
                self._ctx.reporter.info(f"stopping after step {state.step}: {answer.reason}")
            else:
                self._save_asked = True
