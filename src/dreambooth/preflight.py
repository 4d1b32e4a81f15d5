"""One preflight for `validate`, `run --dry-run` and `run`: what can be known before any work.

In the order of what is cheap: the environment, the output, the lock, then what becomes of the run
that lies there. Nothing is changed, and torch is not imported. The job, its plugins and the model
come before (`jobfile.check_job`), what needs the model's shapes comes after (`engine.plan`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import job_changes, launcher, run_lock
from dreambooth.checkpoint_files import (
    CHECKSUMS,
    Damaged,
    list_checkpoints,
    newest_whole,
    step_of,
    verify_all,
)
from dreambooth.errors import JobError, RunError
from dreambooth.files import cache_root
from dreambooth.run_folder import RunFolder, check_resumable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dreambooth.job import Job

OUTPUT_HINT = "name a folder you may write to in output (or -o output=...)"


@dataclass(frozen=True)
class Outlook:
    """What a run will do with what lies in its folder."""

    manifest: dict[str, Any] = field(default_factory=dict)
    """The run's manifest before this life of it; empty for a fresh run."""
    finished: dict[str, Any] | None = None
    """The recorded result of a run that has nothing left to do."""
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Harmless differences to the job the run began with: dotted name -> (old, new)."""
    start: Path | None = None
    """The checkpoint it goes on from; None where it begins at step 0."""
    aside: Path | None = None
    """Where `--fresh` moves an earlier run."""
    newer: tuple[Path, ...] = ()
    """Checkpoints that going back leaves behind, oldest first."""
    foreign: bool = False
    """Whether `start` is another run's checkpoint."""

    @property
    def step(self) -> int:
        """The step it begins at."""
        return (step_of(self.start) or 0) if self.start else 0

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


def preflight(
    job: Job,
    *,
    fresh: bool = False,
    resume_from: str | None = None,
    processes: int = 1,
    warn: Callable[[str], None],
) -> Outlook:
    """Check all that a run needs besides its job, and say what it will do with what is there.

    Raises the `UserError` with which the run would end. `warn` is told what the run would warn of.
    """
    require_environment()
    folder = RunFolder(job.folder)
    require_writable(folder)
    run_lock.require_free(folder.path)
    return decide(job, fresh=fresh, resume_from=resume_from, processes=processes, warn=warn)


def require_environment() -> None:
    """Raise `JobError` for variables that name other processes wrongly, or a user without home."""
    launcher.require_environment()
    cache_root()


def require_writable(folder: RunFolder) -> None:
    """Raise `JobError` where a run's folder cannot be made or written into."""
    if why := folder.unwritable():
        raise JobError(f"cannot write into {folder.path}: {why}", OUTPUT_HINT)


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
        start = find_checkpoint([], resume_from) if resume_from is not None else None
        return Outlook(aside=aside, start=start, foreign=start is not None)
    changed = check_resumable(folder, job, processes)
    manifest = folder.read_manifest()
    own = list_checkpoints(folder.checkpoints)
    if resume_from is not None:
        start = find_checkpoint([path for _, path in own], resume_from)
        foreign = start.parent != folder.checkpoints.absolute()
        if foreign and own:
            raise JobError(
                f"{start} belongs to another run, and {folder.path} has checkpoints of its own",
                "give the job another name",
            )
        newer = tuple(p for step, p in own if not foreign and step > (step_of(start) or 0))
        return Outlook(manifest, None, changed, start, None, newer, foreign)
    if has_ended(job, manifest, folder.path) and folder.result_is_whole():
        return Outlook(manifest, manifest["result"], changed)
    return Outlook(manifest, None, changed, newest_whole(folder.checkpoints, warn))


def has_ended(job: Job, manifest: Mapping[str, Any], base: Path) -> bool:
    """Say whether a run has a result and nothing left to do.

    It did all its steps, or a rule that the job still has ended it for good.
    """
    done = manifest.get("result")
    if not done or done["steps"] >= job.train.steps:
        return bool(done)
    before, now = job_changes.as_now(manifest.get("job") or {}, job, base), job.resolved()
    same = all(before.get(name) == now[name] for name in ("early_stop", "callbacks"))
    return same and bool(done.get("for_good"))


def find_checkpoint(own: Sequence[Path], wanted: str) -> Path:
    """Return a whole checkpoint: one of a run's `own` by its step (`100`, `step-000100`), or any by
    its folder.

    `JobError` where there is none such, `RunError` where it is damaged.
    """
    path = _find(own, wanted)
    try:
        verify_all(path)
    except Damaged as error:
        raise RunError(f"checkpoint {path} is damaged: {error}", "name another one") from error
    return path


def _find(own: Sequence[Path], wanted: str) -> Path:
    known = {path.name: path for path in own}
    number = wanted.isascii() and wanted.isdecimal()  # `²` is a digit, but no number
    name = f"step-{wanted.lstrip('0').zfill(6)}" if number else wanted
    if name in known:
        return known[name].absolute()
    path = Path(wanted).absolute()
    if os.path.isfile(path / CHECKSUMS) and step_of(path) is not None:
        return path
    raise JobError(
        f"there is no checkpoint {wanted}",
        "name a checkpoint's folder, or a step of this run (it has: "
        f"{', '.join(known) or 'none yet'})",
    )
