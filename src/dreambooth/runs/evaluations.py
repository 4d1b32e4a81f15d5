"""Evaluations of a run on disk: which numbers lie where, so that none takes another's place.

`evaluations/step-000400.json` and `findings.json` are of the run's own samples, as it measured them
at its end. What is measured otherwise, of other pictures or through other eyes, has an id that
tells it apart: `evaluations/step-000400-1a2b3c4d.json`, with its findings beside it in
`evaluations/findings-step-000400-1a2b3c4d.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from dreambooth.files import MAX_JSON, read_limited

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dreambooth.runs.folder import RunFolder

SAMPLES = "samples"
"""Names the pictures that were drawn while training."""
OWN = ""
"""The id of what a run measured of its own samples."""
_FILE = re.compile(r"step-\d{6,}(?:-([0-9a-f]{8}))?\.json")


def digest(value: Any) -> str:
    """Return eight digits that tell JSON data from other."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def id_of(folder: RunFolder, pictures: str, step: int, measures: Iterable[tuple[str, str]]) -> str:
    """Return the id of an evaluation: `OWN` where it measures what the run's own one does.

    `pictures` is `SAMPLES` or tells a set of drawn ones from others; `measures` are the names of
    the numbers and of the encoders they came through. Where the run has measured nothing of its
    samples yet, what measures them is its own.
    """
    seen = sorted(set(measures))
    if pictures == SAMPLES and measures_of(evaluation_file(folder, step, OWN)) in (None, seen):
        return OWN
    return digest([pictures, seen])


def evaluation_file(folder: RunFolder, step: int, id: str) -> Path:
    """Return where the numbers of a step lie."""
    return folder.evaluations / f"step-{step:06d}{id and '-' + id}.json"


def findings_file(folder: RunFolder, evaluation: str = "") -> Path:
    """Return where the findings lie that were made of a file of numbers, or the run's own."""
    return folder.evaluations / f"findings-{evaluation}" if id_in(evaluation) else folder.findings


def id_in(name: str) -> str:
    """Return the id in the name of an evaluation's file."""
    found = _FILE.fullmatch(name)
    return (found[1] or OWN) if found else OWN


def measures_of(file: Path) -> list[tuple[str, str]] | None:
    """Return the names of numbers and encoders in a file; None where it cannot be read."""
    try:
        rows = json.loads(read_limited(file, MAX_JSON))["metrics"]
        return sorted({(str(row["name"]), str(row["encoder"])) for row in rows})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
