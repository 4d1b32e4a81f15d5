"""What a machine runs out of, in a person's words: disk, memory, and the other processes."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import torch

from dreambooth.errors import PluginError, RunError, is_out_of_memory, no_memory
from dreambooth.files import disk_is_full
from dreambooth.helpers.text import printable, redacted
from dreambooth.plugins.faults import plugin_fault
from dreambooth.runs.checkpoints import list_checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.job import Job
    from dreambooth.runs.folder import RunFolder


@contextmanager
def explained(job: Job, folder: RunFolder) -> Iterator[None]:
    """Turn a full disk, too little memory and a lost process into a `RunError` that helps, and
    whatever else a plugin raises (`SystemExit`, too) into a `PluginError` that names it."""
    try:
        with whose(job, folder):
            yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.path.is_dir():
            raise folder.gone() from error
        if not disk_is_full(error):
            raise
        raise RunError(
            f"there is no room left on the disk of {error.filename or folder.path}",
            f"{whole(folder)}: make room and run the same command again",
        ) from error
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            from dreambooth.engine.cost.advice import advise

            try:
                advice = advise(job, error, whole(folder))
            except (MemoryError, RuntimeError):  # not even for counting
                advice = no_memory(error)
            raise advice from error
        if lost_a_process(error):
            raise RunError(
                "another process of this run has ended",
                f"see what it said; {whole(folder)}: run the same command again",
            ) from error
        raise


@contextmanager
def whose(job: Job, folder: RunFolder) -> Iterator[None]:
    """Tell a plugin's fault under its name, and keep the traceback in `run.log`."""
    try:
        yield
    except PluginError as error:
        error.hint += f"; {whole(folder)}"
        raise
    except BaseException as error:
        if environmental(error):
            raise
        fault = plugin_fault(error, job)
        if fault is None:
            raise
        if keep_traceback(folder, error):
            fault.hint += f"; the traceback is in {folder.log}, and {whole(folder)}"
        raise fault from error


def environmental(error: BaseException) -> bool:
    """Say whether the machine is to blame, whatever code it struck in."""
    if isinstance(error, OSError):
        return disk_is_full(error)
    known = isinstance(error, MemoryError | RuntimeError)
    return known and (is_out_of_memory(error) or lost_a_process(error))


def keep_traceback(folder: RunFolder, error: BaseException) -> bool:
    """Append an exception's traceback to `run.log`, where there is a run; say whether it is there.

    Best effort: what went wrong is told in any case.
    """
    text = printable(redacted("".join(traceback.format_exception(error))))
    try:
        with folder.log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} error {text}")
    except OSError:
        return False
    return True


def whole(folder: RunFolder) -> str:
    """Say from where a run would go on."""
    steps = [step for step, _ in list_checkpoints(folder.checkpoints)]
    return (
        f"the checkpoint of step {max(steps)} is intact" if steps else "no checkpoint was due yet"
    )


def lost_a_process(error: BaseException) -> bool:
    """Say whether a collective call broke because another process is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error)
    return "gloo" in text and ("Connection closed" in text or "Connection reset" in text)
