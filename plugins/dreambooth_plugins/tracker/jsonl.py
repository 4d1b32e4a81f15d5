"""Numbers as lines of JSON: the tracker every other tool can read."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Literal

from dreambooth import Tracker
from dreambooth.errors import RunError
from dreambooth.files import write_bytes
from dreambooth.interfaces import TrackerWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreambooth.interfaces import Context


class Jsonl(Tracker):
    """Write `metrics.jsonl` in the run folder: `{"step": 10, "train/loss": 0.12, ...}` a line.

    It holds no wall-clock time, and a resumed run first cuts it back to the checkpoint's step:
    interrupted or not, the file ends up the same. What is not finite is written as null.
    """

    kind: Literal["jsonl"] = "jsonl"

    def open(self, ctx: Context, resume_step: int) -> TrackerWriter:
        """Cut the file back to `resume_step` and go on after it."""
        return JsonlWriter(ctx.folder / "metrics.jsonl", resume_step)


class JsonlWriter(TrackerWriter):
    """Appends to one file. Numbers are written in full, so that they read back to the bit."""

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = kept_lines(path, resume_step)
        # Not through a link: a run's folder may have come from somebody else.
        if path.is_symlink() or not path.is_file() or path.read_bytes() != kept:
            write_bytes(path, kept)
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line, at once visible to readers."""
        finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Bring the lines to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def kept_lines(path: Path, resume_step: int) -> bytes:
    """Return the lines of steps up to `resume_step`; none for a fresh run (0).

    A last line that a kill tore off is dropped. Raises `RunError` where another line is damaged.
    """
    if resume_step == 0 or not path.is_file():
        return b""
    lines = path.read_bytes().splitlines()
    kept: list[bytes] = []
    for number, line in enumerate(lines, start=1):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            if number == len(lines):
                break
            raise RunError(
                f"line {number} of {path} is damaged: {error}",
                "mend or remove that line; the checkpoints do not depend on it",
            ) from error
        if step <= resume_step:
            kept.append(line + b"\n")
    return b"".join(kept)
