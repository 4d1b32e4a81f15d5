"""One trial as a run: the job its values make, a watcher of its numbers, and what it gave."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from dreambooth.errors import RunError, UserError
from dreambooth_plugins.sweep.folder import trial_name
from dreambooth_plugins.sweep.space import overrides

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dreambooth import Job, RunResult
    from dreambooth_plugins.sweep.file import Objective
    from dreambooth_plugins.sweep.folder import StudyFolder
    from dreambooth_plugins.sweep.space import Dimension


class Pruned(UserError):
    """The trial is worse than others at this step: it ends without a result, on purpose."""


class LostLease(UserError):
    """This worker was taken for gone: the trial is somebody else's, and nothing may be told."""


class Watching:
    """A reporter that hands every new number on, and else does what another one does.

    It may end the run by raising: numbers come in the main thread, between two steps.
    """

    def __init__(self, inner: Any, see: Callable[[int, Mapping[str, float]], None]) -> None:
        self._inner, self._see = inner, see
        self.info, self.warn = inner.info, inner.warn
        self.progress, self.training = inner.progress, inner.training
        self.step, self.pictures = inner.step, inner.pictures

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show the numbers of a logged step, and hand them on."""
        self._inner.scalars(step, values)
        self._see(step, values)


def job_of(
    folder: StudyFolder, space: Sequence[Dimension], trial: int, drawn: Mapping[str, Any]
) -> Job:
    """Return the job of a trial: the template with the drawn values, in a folder of its own."""
    from dreambooth.api import load

    job = load(folder.template, overrides(list(space), drawn))
    return job.model_copy(update={"name": trial_name(trial), "output": folder.trials})


def values_of(result: RunResult, objectives: Sequence[Objective]) -> list[float]:
    """Return the objective's numbers of a finished run; `RunError` where it logged none such."""
    found = []
    for objective in objectives:
        if objective.at == "best":
            numbers = [value for _, value in result.history.get(objective.metric, ())]
            numbers = [v for v in numbers if isfinite(v)]
            value = (min if objective.mode == "min" else max)(numbers, default=None)
        else:
            value = result.scalars.get(objective.metric)
        if value is None:
            raise RunError(
                f'the run logged no number "{objective.metric}"',
                f"it logged {', '.join(sorted(result.scalars))}",
            )
        found.append(float(value))
    return found
