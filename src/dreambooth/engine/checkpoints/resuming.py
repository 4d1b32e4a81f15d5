"""Before the first step: whose run this is, whether it may go on, and from where."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, TypeVar, cast

from dreambooth.engine.checkpoints import files as checkpoint
from dreambooth.errors import RunError, ToldElsewhere, UserError
from dreambooth.files import new_folder, sweep
from dreambooth.runs.checkpoints import Damaged, copy, read_sums
from dreambooth.runs.outlook import changed_line, decide

if TYPE_CHECKING:
    from collections.abc import Callable

    from dreambooth.engine.checkpoints.files import Checkpoint
    from dreambooth.engine.devices.processes import Devices
    from dreambooth.engine.reporting import Reporter
    from dreambooth.job import Job
    from dreambooth.runs.folder import RunFolder
    from dreambooth.runs.outlook import Outlook

T = TypeVar("T")


def set_aside(folder: RunFolder, reporter: Reporter) -> None:
    """Move an existing run away (`--fresh`); `RunError` while its process is at work."""
    if not folder.path.exists():
        return
    with folder.lock():
        aside = folder.set_aside()
    reporter.info(f"the earlier run was moved to {aside}")


def begin(
    job: Job, folder: RunFolder, devices: Devices, reporter: Reporter, resume_from: str | None
) -> Outlook:
    """Hold the job against the run that is there, and go back where that was asked for.

    Raises `JobError` where the job changed in a way that makes another run of it.
    """
    sweep(folder.path)
    # Whoever reads the checkpoint (`newest_of_all`) tells of damaged ones.
    count = devices.world_size
    outlook = decide(job, resume_from=resume_from, processes=count, warn=lambda _: None)
    for name, pair in outlook.changed.items():
        reporter.info(changed_line(name, *pair))
    if resume_from is not None:
        go_back(folder, outlook, reporter)
    return outlook


def go_back(folder: RunFolder, outlook: Outlook, reporter: Reporter) -> None:
    """Make the checkpoint that was asked for the run's newest one.

    Newer ones are moved to `checkpoints/aside-N`. A checkpoint of another run is copied into this
    one.
    """
    path = outlook.start
    assert path is not None
    if outlook.foreign:
        try:
            with new_folder(folder.checkpoints / path.name) as beside:
                copy(path, beside)
        except Damaged as error:
            raise RunError(f"checkpoint {path} is damaged: {error}", "name another one") from error
        reporter.info(f"beginning at {path}")
        return
    folder.update_manifest(result=None)
    if outlook.newer:
        number = 1
        while (aside := folder.checkpoints / f"aside-{number}").exists():
            number += 1
        aside.mkdir()
        for other in reversed(outlook.newer):  # newest first: a kill leaves an older newest
            other.rename(aside / other.name)
        reporter.info(f"going back to {path.name}; newer checkpoints were moved to {aside}")


def newest_of_all(
    devices: Devices, folder: RunFolder, warn: Callable[[str], None]
) -> Checkpoint | None:
    """Return the main process's newest checkpoint, on every process; None where it has none.

    Each process reads its own files. Hosts that do not share the run's folder have other ones, or
    none: `RunError` in all processes then, for they would train on from different steps.
    """
    found = checkpoint.newest(folder.checkpoints, warn) if devices.is_main else None
    wanted = devices.share((found.folder.name, read_sums(found.folder)) if found else None)
    if devices.world_size == 1 or wanted is None:
        return found
    name, sums = wanted
    lacking = ""
    if not devices.is_main:
        try:
            found = checkpoint.load(folder.checkpoints / name)
            if read_sums(found.folder) != sums:
                lacking = "it is another one"
        except Damaged as error:
            lacking = str(error)
    where = f"process {devices.rank} on {socket.gethostname()}: {folder.checkpoints / name}"
    told = devices.join([f"{where}: {lacking}"] if lacking else [])
    if told:
        listed = "\n".join(f"  {line}" for line in told)
        differ = RunError(
            f"not all processes have the checkpoint {name}, from which the run goes on:\n{listed}",
            "output must lie on a disk that all hosts share",
        )
        raise differ if devices.is_main else elsewhere(differ)
    return found


def together(devices: Devices, work: Callable[[], T]) -> T:
    """Do on the main process what concerns all of them, and return what came out on each.

    Where it raises a `UserError` all of them end, and the main process tells it.
    """
    told: UserError | None = None
    value: T | None = None
    if devices.is_main:
        try:
            value = work()
        except UserError as error:
            if devices.world_size == 1:
                raise
            told = error
    value, failed = devices.share((value, elsewhere(told) if told else None))
    if failed:
        raise told or failed
    return cast("T", value)


def elsewhere(error: UserError) -> ToldElsewhere:
    """Return what the other processes end with where the main one tells an error."""
    return ToldElsewhere(error.message, error.hint, error.exit_code)
