"""Before the first step: whose run this is, whether it may go on, and from where."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.engine import checkpoint
from dreambooth.errors import JobError, RunError
from dreambooth.files import new_folder, sweep
from dreambooth.jobfile import dump_job
from dreambooth.run_folder import check_resumable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dreambooth.engine.devices import Devices
    from dreambooth.engine.reporting import Reporter
    from dreambooth.job import Job
    from dreambooth.run_folder import RunFolder


@dataclass(frozen=True)
class Begun:
    """What the main process found, told to all of them."""

    manifest: dict[str, Any]
    """The run's manifest before this life of it; empty for a fresh run."""
    done: dict[str, Any] | None
    """The recorded result of a run that has nothing left to do."""


def set_aside(folder: RunFolder, reporter: Reporter) -> None:
    """Move an existing run away (`--fresh`); `RunError` while its process is at work."""
    if not folder.path.exists():
        return
    with folder.lock():
        aside = folder.set_aside()
    reporter.info(f"the earlier run was moved to {aside}")


def begin(
    job: Job, folder: RunFolder, devices: Devices, reporter: Reporter, resume_from: str | None
) -> Begun:
    """Hold the job against the run that is there, and record it as the run's own.

    Raises `JobError` where the job changed in a way that makes another run of it.
    """
    sweep(folder.path)
    for name, (old, new) in check_resumable(folder, job, devices.world_size).items():
        reporter.info(f"{name} changed since the last time: {old!r} -> {new!r}")
    if resume_from is not None:
        go_back(folder, resume_from, reporter)
    manifest = folder.read_manifest()
    if has_ended(job, manifest) and folder.result_is_whole():
        return Begun(manifest, manifest["result"])
    folder.begin(job, dump_job(job), devices.world_size)
    return Begun(manifest, None)


def has_ended(job: Job, manifest: Mapping[str, Any]) -> bool:
    """Say whether a run has a result and nothing left to do.

    It did all its steps, or a rule that the job still has ended it for good.
    """
    done = manifest.get("result")
    if not done or done["steps"] >= job.train.steps:
        return bool(done)
    before, now = manifest.get("job", {}), job.resolved()
    same = all(before.get(name) == now[name] for name in ("early_stop", "callbacks"))
    return same and bool(done.get("for_good"))


def go_back(folder: RunFolder, wanted: str, reporter: Reporter) -> None:
    """Make a checkpoint the run's newest one.

    `wanted` is a step (`100`, `step-000100`) of this run, or a checkpoint's folder. Newer ones
    are moved to `checkpoints/aside-N`. A checkpoint of another run is copied into this one,
    which must not have any of its own. `JobError` where there is no such checkpoint, `RunError`
    where it is damaged.
    """
    path = _find(folder, wanted)
    with _telling(path):
        checkpoint.load(path)
    own = checkpoint.list_checkpoints(folder.checkpoints)
    if path.parent != folder.checkpoints.absolute():
        if own:
            raise JobError(
                f"{path} belongs to another run, and {folder.path} has checkpoints of its own",
                "give the job another name, or use --fresh as well",
            )
        with _telling(path), new_folder(folder.checkpoints / path.name) as beside:
            checkpoint.copy(path, beside)
        reporter.info(f"beginning at {path}")
        return
    step = int(path.name.removeprefix("step-"))
    folder.update_manifest(result=None)
    newer = [other for number, other in own if number > step]
    if newer:
        number = 1
        while (aside := folder.checkpoints / f"aside-{number}").exists():
            number += 1
        aside.mkdir()
        for other in reversed(newer):  # newest first: a kill in between leaves an older newest
            other.rename(aside / other.name)
        reporter.info(f"going back to {path.name}; newer checkpoints were moved to {aside}")


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except checkpoint.Damaged as error:
        raise RunError(f"checkpoint {path} is damaged: {error}", "name another one") from error


def _find(folder: RunFolder, wanted: str) -> Path:
    known = {path.name: path for _, path in checkpoint.list_checkpoints(folder.checkpoints)}
    name = f"step-{int(wanted):06d}" if wanted.isdigit() else wanted
    if name in known:
        return known[name].absolute()
    path = Path(wanted).absolute()
    if (path / checkpoint.CHECKSUMS).is_file() and checkpoint.step_of(path) is not None:
        return path
    there = ", ".join(known) or "none yet"
    raise JobError(
        f"there is no checkpoint {wanted}",
        f"name a checkpoint's folder, or a step of this run (it has: {there})",
    )
