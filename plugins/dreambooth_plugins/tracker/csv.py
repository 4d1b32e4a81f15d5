"""Numbers as a table for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
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

HEAD = b"step,name,value\n"


class Csv(Tracker):
    """Write `metrics.csv` in the run folder: a row a number, `step,name,value`.

    Long, not wide: what is measured differs from step to step (`pandas.read_csv(...).pivot(...)`
    makes a column a name). It holds no wall-clock time, and a resumed run first cuts it back to
    the checkpoint's step. What is not finite has an empty value.
    """

    kind: Literal["csv"] = "csv"

    def open(self, ctx: Context, resume_step: int) -> TrackerWriter:
        """Cut the file back to `resume_step` and go on after it."""
        return CsvWriter(ctx.folder / "metrics.csv", resume_step)


class CsvWriter(TrackerWriter):
    """Appends to one file. Numbers are written in full, so that they read back to the bit."""

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = kept_rows(path, resume_step)
        # Not through a link: a run's folder may have come from somebody else.
        if path.is_symlink() or not path.is_file() or path.read_bytes() != kept:
            write_bytes(path, kept)
        self._file = path.open("a", encoding="utf-8", newline="")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row a number, at once visible to readers."""
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        for name, value in values.items():
            writer.writerow([step, name, repr(float(value)) if math.isfinite(value) else ""])
        self._file.write(rows.getvalue())
        self._file.flush()

    def flush(self) -> None:
        """Bring the rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def kept_rows(path: Path, resume_step: int) -> bytes:
    """Return the head and the rows of steps up to `resume_step`; the head alone for a fresh run.

    A last row that a kill tore off is dropped: it has no end of line. Raises `RunError` where
    another row is damaged.
    """
    if resume_step == 0 or not path.is_file():
        return HEAD
    kept = [HEAD]
    whole = path.read_bytes().splitlines(keepends=True)
    for number, row in enumerate(whole[1:], start=2):
        if not row.endswith(b"\n"):
            break
        step, comma, _ = row.partition(b",")
        if not comma or not step.isdigit():
            raise RunError(
                f"line {number} of {path} is damaged: it does not begin with a step",
                "mend or remove that line; the checkpoints do not depend on it",
            )
        if int(step) <= resume_step:
            kept.append(row)
    return b"".join(kept)
