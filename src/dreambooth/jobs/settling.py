"""What a job leaves open, written out: its model's kind, what trains, the identifier, formats."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from dreambooth.errors import UserError
from dreambooth.interfaces.exporter import AUTOMATIC, INSTEAD
from dreambooth.jobs import identifiers
from dreambooth.plugins import component as made
from dreambooth.plugins.slots import components

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dreambooth.component import Component
    from dreambooth.interfaces import Exporter, ModelInfo
    from dreambooth.job import Job


def settled(job: Job) -> Job:
    """Return the job with every `auto` of its components and its identifier written out.

    A function of the job and the model's JSON files alone, so that every life of a run is the same
    job, and a run that began with `auto` equals one that named what it came to. `JobError` where
    an identifier cannot be chosen.
    """
    return identifiers.settled(by_model(job))


def by_model(job: Job) -> Job:
    """Return the job with what its components take from the model written out.

    A model that cannot be read leaves them as they are: `checks.preflight` says what is wrong.
    """
    changed: dict[str, Component] = {}
    try:
        model = job.model.settled(job.model.describe)
        if model is not job.model:
            changed["model"] = model
        info: Callable[[], ModelInfo] = cache(model.describe)
        for at, component in components(job):
            if len(at) == 1 and at[0] != "model":
                found = component.settled(info)
                if found is not component:
                    changed[str(at[0])] = found
    except (UserError, OSError):
        return job
    return job.model_copy(update=changed) if changed else job


def automatic_exporters(job: Job) -> list[Exporter]:
    """Return the exporters `exports: auto` can come to, for this job's freezing policy."""
    if job.exports != "auto":
        return []
    chosen: list[Exporter] = [
        made("exporter", AUTOMATIC[k]) for k in sorted(job.freezing.artifacts) if k in AUTOMATIC
    ]
    return [
        made("exporter", INSTEAD[e.kind]) if e.kind in INSTEAD and e.refusal(job.freezing) else e
        for e in chosen
    ]


def chosen_exporters(job: Job) -> Sequence[Exporter]:
    """Return the job's exporters, those that `auto` can come to written out."""
    return automatic_exporters(job) if job.exports == "auto" else job.exports
