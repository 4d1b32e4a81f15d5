"""How long the steps took: wall-clock, apart from the metrics so that those can be compared."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreambooth.runs.folder import RunFolder


class Timings:
    """Writes a line of `timings.jsonl` for each stretch of steps."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        """`step` is the one the run begins at; the clock begins now."""
        self._file, self._last = folder.timings, (time.monotonic(), step)

    def begin(self) -> None:
        """Leave nothing there of a life that took no step."""
        if self._last[1] == 0:
            self._file.unlink(missing_ok=True)

    def write(self, step: int) -> None:
        """Write how long it took from the line before to this step."""
        now, (then, before) = time.monotonic(), self._last
        self._last = (now, step)
        line = {"step": step, "seconds": round(now - then, 4), "steps": step - before}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
