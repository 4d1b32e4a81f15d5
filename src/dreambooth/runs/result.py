"""What a finished run leaves behind, and what it logged on the way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

from dreambooth.errors import RunError
from dreambooth.files import read_limited
from dreambooth.runs.checkpoints import list_checkpoints

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreambooth.runs.folder import RunFolder

METRICS = "metrics.jsonl"
MAX_METRICS = 256 * 1024 * 1024


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind."""

    folder: Path
    steps: int
    final: Path
    """The first export; with `exports: []` the last checkpoint."""
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

    @property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Every logged number over the whole run: name -> (step, value) pairs in order.

        `train/loss`, `train/lr`, `validation/loss`, `metric/...`; a number that was not finite is
        NaN. Read from `metrics.jsonl`, so earlier lives of the run are in it; empty where the
        job's trackers leave `jsonl` out.
        """
        return read_history(self.folder / METRICS)


def read_history(file: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what a run's `metrics.jsonl` holds; `RunError` where it cannot be read."""
    try:
        lines = read_limited(file, MAX_METRICS).splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    found: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
            for name, value in row.items():
                found.setdefault(name, []).append((step, nan if value is None else float(value)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if number == len(lines):  # torn off by a kill, or being written
                break
            raise RunError(
                f"line {number} of {file} is damaged: {error}",
                "mend or remove that line; the checkpoints do not depend on it",
            ) from error
    return found


def newest_checkpoint(folder: RunFolder) -> Path:
    """Return the folder of a run's newest checkpoint; that of all of them where there is none."""
    return max(list_checkpoints(folder.checkpoints), default=(0, folder.checkpoints))[1]


def result_of(
    folder: RunFolder, done: Mapping[str, Any], *, already_finished: bool = False
) -> RunResult:
    """Return the result as the manifest records it."""
    return RunResult(
        folder.path,
        done["steps"],
        folder.final if done.get("exported", True) else newest_checkpoint(folder),
        tuple(done["checks"]),
        dict(done["scalars"]),
        already_finished,
        (done.get("kept") or {}).get("why", ""),
        done.get("stop", ""),
        done.get("for_good", False),
    )
