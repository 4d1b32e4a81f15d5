"""Taking a checkpoint back: content that no run of this job wrote is refused in words.

Checksums show what changed by itself; they say nothing of a file that somebody else wrote.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dreambooth.errors import RunError, UserError, is_out_of_memory
from dreambooth.runs.checkpoints import reason, step_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.engine.checkpoints.files import Checkpoint
    from dreambooth.engine.state import TrainState
    from dreambooth.engine.step import Meter


@contextmanager
def taking_back(found: Checkpoint) -> Iterator[None]:
    """Turn whatever foreign content makes the block (plugins' code too) raise into `RunError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise RunError(
            f"checkpoint {found.folder} holds something else than this run would write "
            f"({type(error).__name__}: {reason(error)})",
            "move that folder away: the run then goes on from the checkpoint before it",
        ) from error


def restore(state: TrainState, meter: Meter, found: Checkpoint) -> None:
    """Load a checkpoint; `RunError` where its content is not this run's."""
    with taking_back(found):
        state.load(found.tensors, found.numbers["train"])
        meter.load(found.numbers["meter"])
        if state.step != step_of(found.folder):
            raise ValueError(f"it is of step {state.step}")
