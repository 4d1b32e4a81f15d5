"""Attempts and trials: which belong together, which were lost, and taking them over.

Optuna keeps an attempt for good: one whose worker is gone fails, and the trial goes on in a new
attempt with the same values (`RetryHeartbeatStaleTrialCallback`). Here a *trial* is all attempts
of one set of values. Its number is its first attempt's place among all first attempts, which
nothing that comes later changes, and it has one folder, so that an attempt goes on from the
checkpoint of the one before.

Who works on a trial holds the lock of its *claim*, a folder beside the runs, from before it looks
whether the attempt is still its own until after it has told the outcome. Whoever takes a trial over
holds it as well, and looks again once it has it. So an attempt is taken from a worker that is
gone, never from one that is slow, where both see the claim; a worker that was taken for gone
(stopped for longer than a database's grace) finds its attempt failed, stops before it tells
anything, and lets go of the claim: only then the next attempt is made.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

ERROR, DEATHS, INTERRUPTED, WORKER = "error", "deaths", "interrupted", "worker"
"""Attributes of attempts: why it failed, workers lost so far, stopped by a person, who works."""


def first(attempt: Any) -> int:
    """Return the number of the first attempt of the trial that an attempt belongs to."""
    return int(attempt.system_attrs.get("failed_trial", attempt.number))


def number_of(attempt: Any, attempts: Sequence[FrozenTrial]) -> int:
    """Return the number of the trial that an attempt belongs to, from 0."""
    return len({first(a) for a in attempts if first(a) < first(attempt)})


def newest(attempts: Sequence[FrozenTrial], count: int) -> dict[int, FrozenTrial]:
    """Return trial number -> newest attempt of the first `count` trials.

    Two workers that ask at one moment may begin one trial more than there should be. Whichever
    have the lowest numbers count, the same ones for everybody.
    """
    found = {first(attempt): attempt for attempt in sorted(attempts, key=lambda a: a.number)}
    return dict(enumerate(found[begun] for begun in sorted(found)[:count]))


def state_of(attempt: FrozenTrial) -> str:
    """Return a word for where a trial stands: done, pruned, failed, running or waiting."""
    if attempt.state.name == "FAIL":
        return "failed" if ERROR in attempt.user_attrs else "waiting"
    words = {"COMPLETE": "done", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting"}
    return words[attempt.state.name]


def is_lost(attempt: FrozenTrial) -> bool:
    """Say whether an attempt ended without an outcome: its worker is gone, or was interrupted."""
    return attempt.state.name == "FAIL" and ERROR not in attempt.user_attrs


def retry(study: Study, attempt: FrozenTrial, retries: int) -> bool:
    """Put a lost attempt's trial back into the queue; False where it lost too many workers.

    That is then the trial's error. Call it under the trial's claim.
    """
    from optuna import create_trial
    from optuna.storages import RetryHeartbeatStaleTrialCallback
    from optuna.trial import TrialState

    again = deepcopy(attempt)
    interrupted = again.user_attrs.pop(INTERRUPTED, False)
    again.user_attrs.pop(WORKER, None)
    deaths = int(again.user_attrs.get(DEATHS, 0)) + (0 if interrupted else 1)
    again.user_attrs[DEATHS] = deaths
    if deaths <= retries:
        RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, again)
        return True
    history = [*again.system_attrs.get("retry_history", []), again.number]
    study.add_trial(
        create_trial(
            state=TrialState.FAIL,
            params=again.params,
            distributions=again.distributions,
            user_attrs={**again.user_attrs, ERROR: f"{deaths} workers ended while they ran it"},
            system_attrs={"failed_trial": first(attempt), "retry_history": history},
        )
    )
    return False
