"""What a machine runs out of, in a person's words: disk, memory, and the other processes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dreambooth.checkpoint_files import list_checkpoints
from dreambooth.errors import RunError, is_out_of_memory, no_memory
from dreambooth.files import disk_is_full

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.job import Job
    from dreambooth.run_folder import RunFolder


@contextmanager
def explained(job: Job, folder: RunFolder) -> Iterator[None]:
    """Turn a full disk, too little memory and a lost process into a `RunError` that helps."""
    try:
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
        if out_of_memory(error):
            from dreambooth.engine.memory_advice import advise

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


def whole(folder: RunFolder) -> str:
    """Say from where a run would go on."""
    steps = [step for step, _ in list_checkpoints(folder.checkpoints)]
    return (
        f"the checkpoint of step {max(steps)} is intact" if steps else "no checkpoint was due yet"
    )


def out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error)


def lost_a_process(error: BaseException) -> bool:
    """Say whether a collective call broke because another process is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error)
    return "gloo" in text and ("Connection closed" in text or "Connection reset" in text)
