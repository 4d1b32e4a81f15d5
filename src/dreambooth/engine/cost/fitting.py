"""Does a job fit into a given memory, and which options would make it fit?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth.engine.cost.advice import smaller
from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.reporting import Quiet, late_progress

if TYPE_CHECKING:
    from dreambooth.engine.cost.residency import Phase
    from dreambooth.engine.reporting import Reporter
    from dreambooth.job import Job


@dataclass(frozen=True)
class Need:
    """What a job takes at most."""

    options: tuple[str, ...]
    """What is changed in it, as a person would write it; nothing for the job as it is."""
    total: int
    """Bytes."""
    phase: Phase
    """When."""


@dataclass(frozen=True)
class Fit:
    """A job held against a memory of `limit` bytes."""

    limit: int
    needs: Need
    alone: tuple[Need, ...] = ()
    """What single options would come to, the smallest first, for a job that does not fit."""
    together: Need | None = None
    """The fewest of them that fit together, by what each saves; None where all do not."""

    @property
    def fits(self) -> bool:
        """Whether the job fits as it is."""
        return self.needs.total <= self.limit


def held_against(job: Job, limit: int, reporter: Reporter) -> Fit:
    """Count the job's largest phase, and where it does not fit that of jobs that need less.

    Everything is counted as the plan counts, on shapes alone.
    """
    needs = need(job, ())
    if needs.total <= limit:
        return Fit(limit, needs)
    options = list(smaller(job))
    with late_progress(reporter, "Counting memory", 2 * len(options)) as progress:
        alone = []
        for named, changed in options:
            alone.append(need(changed, (named,)))
            progress.advance()
        alone = sorted((n for n in alone if n.total < needs.total), key=lambda n: n.total)
        together = None
        if not (alone and alone[0].total <= limit):
            together = _joined(job, limit, [n.options[0] for n in alone])
    return Fit(limit, needs, tuple(alone), together)


def _joined(job: Job, limit: int, order: list[str]) -> Need | None:
    """Change one option after the other, in the order given, until the job fits."""
    taken: tuple[str, ...] = ()
    for named in order:
        changed = dict(smaller(job)).get(named)
        if changed is None:  # another option has made it pointless
            continue
        job, taken = changed, (*taken, named)
        found = need(job, taken)
        if found.total <= limit:
            return found
    return None


def need(job: Job, options: tuple[str, ...]) -> Need:
    """Return what a job takes at most."""
    largest = make_plan(job, Quiet()).largest
    return Need(options, largest.total, largest.phase)
