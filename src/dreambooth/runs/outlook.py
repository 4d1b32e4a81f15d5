"""What a run will do with what lies in its folder: known before any work, and nothing is changed.

The job, its plugins, its model and its output were checked before (`jobs.loading.check_job`); what
needs the model's shapes comes after (`engine.cost.plan`). torch is not imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError, RunError
from dreambooth.jobs import changes
from dreambooth.runs import lock
from dreambooth.runs.checkpoints import (
    CHECKSUMS,
    Damaged,
    list_whole,
    name_of,
    newest_whole,
    step_of,
    verify_all,
)
from dreambooth.runs.folder import RunFolder, check_resumable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dreambooth.job import Job


@dataclass(frozen=True)
class Outlook:
    """What a run will do with what lies in its folder."""

    manifest: dict[str, Any] = field(default_factory=dict)
    """The run's manifest before this life of it; empty for a fresh run."""
    finished: dict[str, Any] | None = None
    """The recorded result of a run that has nothing left to do."""
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Harmless differences to the job the run began with: dotted name -> (old, new)."""
    step: int = 0
    """The step it begins at."""
    start: Path | None = None
    """The checkpoint it goes on from; None where it begins at step 0."""
    aside: Path | None = None
    """Where `--fresh` moves an earlier run."""
    newer: tuple[Path, ...] = ()
    """Checkpoints that going back leaves behind, oldest first."""
    foreign: bool = False
    """Whether `start` is another run's checkpoint."""

    def lines(self) -> list[str]:
        """Say what becomes of the run that is there, besides the step it goes on from."""
        said = [f"the earlier run will be moved to {self.aside}"] if self.aside else []
        said += [changed_line(name, *pair) for name, pair in self.changed.items()]
        if self.foreign:
            said.append(f"beginning at {self.start}")
        elif self.newer and self.start:
            said.append(f"going back to {self.start.name}; newer checkpoints will be moved aside")
        return said


def changed_line(name: str, old: object, new: object) -> str:
    """Tell of a harmless change of the job."""
    return f"{name} changed since the last time: {old!r} -> {new!r}"


def look_ahead(
    job: Job,
    *,
    fresh: bool = False,
    resume_from: str | None = None,
    processes: int = 1,
    warn: Callable[[str], None],
) -> Outlook:
    """Say what a run will do with what is there, and that no other process works on it.

    Raises the `UserError` with which the run would end. `warn` is told what the run would warn of.
    """
    lock.require_free(job.folder)
    return decide(job, fresh=fresh, resume_from=resume_from, processes=processes, warn=warn)


def decide(
    job: Job,
    *,
    fresh: bool = False,
    resume_from: str | None = None,
    processes: int = 1,
    warn: Callable[[str], None],
) -> Outlook:
    """Hold a job against the run that lies in its folder.

    Raises `JobError` where the job changed in a way that makes another run of it, or where there
    is no checkpoint `resume_from`; `RunError` where what is there is damaged.
    """
    folder = RunFolder(job.folder)
    if fresh:
        aside = folder.free_aside() if folder.path.exists() else None
        if resume_from is None:
            return Outlook(aside=aside)
        step, start = find_checkpoint([], resume_from)
        return Outlook(aside=aside, step=step, start=start, foreign=True)
    changed = check_resumable(folder, job, processes)
    manifest = folder.read_manifest()
    own = list_whole(folder.checkpoints)
    if resume_from is not None:
        step, start = find_checkpoint(own, resume_from)
        foreign = start.parent != folder.checkpoints.absolute()
        if foreign and own:
            raise JobError(
                f"{start} belongs to another run, and {folder.path} has checkpoints of its own",
                "give the job another name",
            )
        newer = tuple(path for other, path in own if not foreign and other > step)
        return Outlook(manifest, None, changed, step, start, None, newer, foreign)
    if has_ended(job, manifest, folder.path) and folder.result_is_whole():
        return Outlook(manifest, manifest["result"], changed)
    return Outlook(manifest, None, changed, *newest_whole(own, warn))


def has_ended(job: Job, manifest: Mapping[str, Any], base: Path) -> bool:
    """Say whether a run has a result and nothing left to do.

    It did all its steps, or a rule that the job still has ended it for good.
    """
    done = manifest.get("result")
    if not done or done["steps"] >= job.train.steps:
        return bool(done)
    before, now = changes.as_now(manifest.get("job") or {}, job, base), job.resolved()
    same = all(before.get(name) == now[name] for name in ("early_stop", "callbacks"))
    return same and bool(done.get("for_good"))


def find_checkpoint(own: Sequence[tuple[int, Path]], wanted: str) -> tuple[int, Path]:
    """Return step and folder of a whole checkpoint.

    One of a run's `own` by its step (`100`, `step-000100`), or any by its folder. `JobError` where
    there is none such, `RunError` where it is damaged.
    """
    step, path = _find(own, wanted)
    try:
        verify_all(path)
    except Damaged as error:
        raise RunError(f"checkpoint {path} is damaged: {error}", "name another one") from error
    return step, path


def _find(own: Sequence[tuple[int, Path]], wanted: str) -> tuple[int, Path]:
    known = {name_of(step): (step, path.absolute()) for step, path in own}
    number = wanted.isascii() and wanted.isdecimal()  # `²` is a digit, but no number
    name = name_of(int(wanted)) if number and len(wanted) < 20 else wanted
    if name in known:
        return known[name]
    path = Path(wanted).absolute()
    step = step_of(path)
    if step is not None and os.path.isfile(path / CHECKSUMS):
        return step, path
    raise JobError(
        f"there is no checkpoint {wanted}",
        "name a checkpoint's folder, or a step of this run (it has: "
        f"{', '.join(known) or 'none yet'})",
    )
