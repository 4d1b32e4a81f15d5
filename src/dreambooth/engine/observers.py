"""The job's callbacks and its early-stop rule, opened, and their states in checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import Callback, Observer
    from dreambooth.job import Job


def watching(job: Job) -> list[Callback]:
    """Return who is told of events, in order: the callbacks, then what decides when to stop."""
    return [*job.callbacks, *([job.early_stop] if job.early_stop else [])]


def open_observers(ctx: EngineContext) -> list[Observer]:
    """Open all of them."""
    return [callback.open(ctx) for callback in watching(ctx.job)]


def observer_states(job: Job, observers: Sequence[Observer]) -> list[dict[str, Any]]:
    """Return each one's state with its kind, as JSON data."""
    pairs = zip(watching(job), observers, strict=True)
    return [{"kind": callback.kind, "state": observer.state()} for callback, observer in pairs]


def load_observers(
    job: Job, observers: Sequence[Observer], saved: Sequence[Mapping[str, Any]]
) -> None:
    """Give each its state back: the first saved one of its kind that nobody has taken.

    The list of callbacks may change between two lives of a run, so places say nothing.
    """
    left = list(saved)
    for callback, observer in zip(watching(job), observers, strict=True):
        mine = next((entry for entry in left if entry.get("kind") == callback.kind), None)
        if mine is not None:
            left.remove(mine)
            observer.load_state(mine["state"])
