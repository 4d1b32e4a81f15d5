"""Which checkpoints are written, and which of them stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.job import Checkpoints


def is_due(options: Checkpoints, step: int) -> bool:
    """Say whether a checkpoint is to be written after this step, whatever else asks for one."""
    counted = options.every != "auto" and step % options.every == 0
    return counted or is_for_good(options, step)


def is_for_good(options: Checkpoints, step: int) -> bool:
    """Say whether the checkpoint of a step is one that `keep_every` never gives away."""
    return options.keep_every is not None and step % options.keep_every == 0


def superseded(
    options: Checkpoints, steps: Sequence[int], written: int, best: int | None = None
) -> list[int]:
    """Return the steps whose checkpoints may go, now that the one of step `written` is whole.

    `steps` are those on disk, `best` is the step `keep_best` holds on to. Newer ones than
    `written` are of a life the run went back from: they are neither counted nor touched.
    """
    here = sorted(step for step in steps if step <= written)
    kept = {*here[-options.keep_last :], best}
    return [step for step in here if step not in kept and not is_for_good(options, step)]
