"""`auto`: the noise scheduler that is usual for the model's family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth import Problem
from dreambooth.errors import JobError
from dreambooth_plugins.common.by_family import of_family
from dreambooth_plugins.scheduler.ddpm import DDPM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dreambooth import Job, Scheduler
    from dreambooth.interfaces import ModelInfo, NoiseSchedule


class Auto(DDPM):
    """The scheduler that is usual for the model: `ddpm` for what predicts epsilon or v.

    Options are those of `ddpm`; a family that comes to another one takes those it has as well. The
    run's own job names what it came to.
    """

    kind: Literal["auto"] = "auto"  # type: ignore[assignment]

    def _of(self, info: ModelInfo) -> Scheduler:
        found: Scheduler = of_family(self, "scheduler", info, info.scheduler, "ddpm")
        return found

    def settled(self, describe: Callable[[], ModelInfo]) -> Scheduler:  # type: ignore[override]
        """Return the scheduler of the family."""
        return self._of(describe())

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a family that names none, and what its scheduler finds."""
        if info is None:
            return ()
        try:
            return self._of(info).check(job, info)
        except JobError as error:
            return (Problem(("scheduler",), error.message, error.hint),)

    def open(self, info: ModelInfo) -> NoiseSchedule:
        """Open the scheduler of the family."""
        return self._of(info).open(info)
