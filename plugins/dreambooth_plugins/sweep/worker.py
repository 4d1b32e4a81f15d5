"""A worker: take a trial, run it, tell the outcome, until every trial has one."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from dreambooth.errors import Interrupted, RunError, UserError
from dreambooth.helpers.text import redacted
from dreambooth_plugins.sweep import trials as attempts
from dreambooth_plugins.sweep.running import LostLease, Pruned, Watching, job_of, values_of
from dreambooth_plugins.sweep.space import grid, readable
from dreambooth_plugins.sweep.storage import StorageAway, Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from dreambooth_plugins.sweep.checking import Sweep
    from dreambooth_plugins.sweep.folder import StudyFolder

POLL = 2.0
"""Seconds between two looks at trials of other workers, when there is nothing else to do."""
LOOK_AROUND = 30.0
"""Seconds between two looks for lost trials while there is work."""
IN_A_ROW = 3
"""After so many failures in a row a worker stops: something is wrong with more than the values."""


class Worker:
    """Works on one study."""

    def __init__(self, folder: StudyFolder, sweep: Sweep, reporter: Any, storage: str) -> None:
        """Open the study, or make it. `storage` is the sweep's, its password with it."""
        self.folder, self.sweep, self.reporter = folder, sweep, reporter
        self.store = Store(storage, folder.journal, sweep.file.grace, reporter.warn)
        self.study = self._open()
        self._looked = float("-inf")
        self._failures = 0
        self._waiting = False

    def _open(self) -> Study:
        import optuna

        from dreambooth_plugins.sweep.search import pruner, sampler

        file = self.sweep.file
        points = grid(self.sweep.space) if file.search.kind == "grid" else []
        study = self.store(
            lambda: optuna.create_study(
                storage=self.store.storage,
                study_name=file.name,
                sampler=sampler(file.search, file.seed, points),
                pruner=pruner(file.pruner),
                directions=[f"{objective.mode}imize" for objective in file.objective],
                load_if_exists=True,
            )
        )
        return study

    def attempts(self) -> list[FrozenTrial]:
        """Return all attempts of the study."""
        return self.store(lambda: self.study.get_trials(deepcopy=False))

    def newest(self) -> dict[int, FrozenTrial]:
        """Return the newest attempt of each trial."""
        return attempts.newest(self.attempts(), self.sweep.trials)

    def work(self) -> None:
        """Run trials until every one has an outcome, those of workers that are gone included."""
        while self._left():
            with ExitStack() as claimed:
                taken = self._take(claimed)
                if taken is not None:
                    self._waiting = False
                    self._run(*taken)
                    continue
            if not self._waiting:
                self._waiting = True
                self.reporter.info("waiting for trials of other workers")
            time.sleep(POLL)

    def _left(self) -> bool:
        found = self.newest()
        states = [attempts.state_of(attempt) for attempt in found.values()]
        return len(found) < self.sweep.trials or any(s in ("running", "waiting") for s in states)

    def _take(self, claimed: ExitStack) -> tuple[Trial, int] | None:
        """Take the next trial and hold its claim; None where there is none to take now."""
        due = time.monotonic() - self._looked > LOOK_AROUND
        if due or not self._is_work():
            self.recover()
        if not self._is_work():
            return None
        space = {d.key: d.distribution() for d in self.sweep.space}
        trial = self.store(lambda: self.study.ask(space))
        claimed.enter_context(self.store.alive(trial._trial_id))
        number = attempts.number_of(self._seen(trial.number), self.attempts())
        if number >= self.sweep.trials:
            return None  # another worker began the last one at the same moment
        try:
            claimed.enter_context(self.folder.claim(number, self.reporter.warn))
        except RunError:
            self._put_back(trial)  # somebody looks at it just now
            return None
        if self._seen(trial.number).state.name != "RUNNING":
            return None  # taken from us in between
        return trial, number

    def _is_work(self) -> bool:
        found = self.newest()
        waiting = any(attempt.state.name == "WAITING" for attempt in found.values())
        return waiting or len(found) < self.sweep.trials

    def _seen(self, number: int) -> FrozenTrial:
        """Return an attempt as the storage has it now."""
        return self.attempts()[number]

    def recover(self) -> None:
        """Put trials whose worker is gone, or was interrupted, back into the queue."""
        self._looked = time.monotonic()
        self.store.fail_stale(self.study)
        for number, attempt in self.newest().items():
            if not (attempts.is_lost(attempt) or self._may_be_stale(attempt)):
                continue
            with ExitStack() as claimed:
                try:
                    claimed.enter_context(self.folder.claim(number, self.reporter.warn))
                except RunError:
                    continue  # it is being worked on
                self._take_over(number)

    def _may_be_stale(self, attempt: FrozenTrial) -> bool:
        """Say whether a running attempt is its worker's no more if nobody holds its claim."""
        running = str(attempt.state.name) == "RUNNING"
        if not running or not self.store.beats:
            return running
        # A database tells by signs of life, and Optuna leaves out an attempt that never gave one.
        if attempts.WORKER in attempt.user_attrs or attempt.datetime_start is None:
            return False
        age = time.time() - float(attempt.datetime_start.timestamp())
        return age > 2 * self.store.grace

    def _take_over(self, number: int) -> None:
        """Make a new attempt of a trial, under its claim, if it still needs one."""
        attempt = self.newest()[number]
        if self._may_be_stale(attempt):
            self._tell(attempt.number, "FAIL")
            attempt = self.newest()[number]
        if not attempts.is_lost(attempt):
            return
        retries = self.sweep.file.retries
        if self.store(lambda: attempts.retry(self.study, attempt, retries)):
            self.reporter.info(f"trial {number} is taken over: it goes on from its checkpoint")
        else:
            self.reporter.warn(f"trial {number} failed: too many workers ended while they ran it")

    def _run(self, trial: Trial, number: int) -> None:
        """Run one trial and tell its outcome. Interrupts and a storage that is away pass."""
        try:
            drawn = trial.params
            self.store(lambda: trial.set_user_attr(attempts.WORKER, _who()))
            self.reporter.info(f"trial {number} of {self.sweep.trials}: {readable(drawn)}")
            values = self._values(trial, number, drawn)
        except StorageAway:
            raise
        except (Interrupted, KeyboardInterrupt):
            self._put_back(trial)
            raise
        except LostLease as error:
            self.reporter.warn(f"trial {number}: {error.message}")
        except Pruned as error:
            self._tell(trial, "PRUNED")
            self._failures = 0
            self.reporter.info(f"trial {number} was pruned: {error.message}")
        except Exception as error:
            self._failed(trial, number, error)
        else:
            self._failures = 0
            self._told(trial, number, values)

    def _values(self, trial: Trial, number: int, drawn: Mapping[str, Any]) -> list[float]:
        from dreambooth.api import run

        job = job_of(self.folder, self.sweep.space, number, drawn)
        first = self.sweep.file.objective[0]
        told = set(self._seen(trial.number).intermediate_values)
        several = len(self.sweep.file.objective) > 1

        def see(step: int, values: Mapping[str, float]) -> None:
            if first.metric not in values:
                return
            if self._seen(trial.number).state.name != "RUNNING":
                raise LostLease("this worker was taken for gone, and leaves the trial to others")
            if several or step in told:  # told by the attempt before, whose numbers were the same
                return
            told.add(step)
            self.store(lambda: trial.report(values[first.metric], step))
            if step < job.train.steps and self.store(trial.should_prune):
                raise Pruned(f"{first.metric} {values[first.metric]:.4g} at step {step}")

        return values_of(run(job, reporter=Watching(self.reporter, see)), self.sweep.file.objective)

    def _put_back(self, trial: Trial) -> None:
        """End an attempt without an outcome, which costs the trial no retry."""
        self.store(lambda: trial.set_user_attr(attempts.INTERRUPTED, True))
        self._tell(trial, "FAIL")

    def _told(self, trial: Trial, number: int, values: list[float]) -> None:
        frozen = self._tell(trial, "COMPLETE", values)
        if frozen.state.name != "COMPLETE" or frozen.values != values:
            self.reporter.warn(f"trial {number} is somebody else's by now; nothing was told of it")
            return
        names = [objective.metric for objective in self.sweep.file.objective]
        shown = ", ".join(f"{n} {v:.4g}" for n, v in zip(names, values, strict=True))
        done = sum(attempts.state_of(a) != "running" for a in self.newest().values())
        self.reporter.info(f"trial {number}: {shown} ({done} of {self.sweep.trials} trials)")

    def _failed(self, trial: Trial, number: int, error: Exception) -> None:
        said = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        text = redacted(said)
        self.store(lambda: trial.set_user_attr(attempts.ERROR, text))
        self._tell(trial, "FAIL")
        self.reporter.warn(f"trial {number} failed: {text}")
        self._failures += 1
        if self._failures >= IN_A_ROW:
            raise RunError(
                f"{IN_A_ROW} trials in a row failed; the last: {text}",
                "mend the cause and give the command again: it goes on with the other trials",
            ) from error

    def _tell(
        self, trial: Trial | int, state: str, values: list[float] | None = None
    ) -> FrozenTrial:
        """Tell an outcome, unless the attempt has one already; return it as it stands."""
        return self.store(
            lambda: self.study.tell(trial, values, _state(state), skip_if_finished=True)
        )


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _who() -> str:
    import os
    import socket

    return f"{socket.gethostname()}:{os.getpid()}"
