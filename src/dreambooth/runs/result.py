"""What a run left, as its manifest records it. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreambooth.runs.folder import RunFolder


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind."""

    folder: Path
    steps: int
    final: Path
    checks: tuple[str, ...]
    """One line an export: how it compared when it was loaded back."""
    scalars: dict[str, float]
    """The last logged numbers."""
    already_finished: bool = False
    kept: str = ""
    """Which step `checkpoints.keep_best` kept and why; empty without it."""
    stopped: str = ""
    """Why the run ended before its last step; empty where it did not."""
    for_good: bool = False
    """Whether that ended it for good, so that the same command does not go on with it."""


def result_of(
    folder: RunFolder, done: Mapping[str, Any], *, already_finished: bool = False
) -> RunResult:
    """Return the result as the manifest records it."""
    return RunResult(
        folder.path,
        done["steps"],
        folder.final,
        tuple(done["checks"]),
        dict(done["scalars"]),
        already_finished,
        (done.get("kept") or {}).get("why", ""),
        done.get("stop", ""),
        done.get("for_good", False),
    )
