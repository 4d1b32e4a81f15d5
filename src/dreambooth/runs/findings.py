"""What was found of a run, read back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dreambooth.files import MAX_JSON, read_limited
from dreambooth.runs.evaluations import findings_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.runs.folder import RunFolder

MARKS = ("good", "look", "problem")
PARTS = ("id", "mark", "sentence", "evidence", "next")


def read_findings(folder: RunFolder, evaluation: str = "") -> list[dict[str, str]]:
    """Return what was found of a run by its own samples, or by another file of numbers.

    None where that is missing or damaged.
    """
    try:
        data = json.loads(read_limited(findings_file(folder, evaluation), MAX_JSON))
        rows = [{part: str(row.get(part) or "") for part in PARTS} for row in data["findings"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []
    return [row for row in rows if row["mark"] in MARKS and row["sentence"]]


def finding_lines(findings: Sequence[dict[str, str]], most: int = 7) -> list[str]:
    """Return findings as lines for people: a mark in words, the sentence, what to do next."""
    lines = []
    for row in findings[:most]:
        lines.append(f"{row['mark']:<8} {row['sentence']}")
        if row["next"]:
            lines.append(f"{'':<8} {row['next']}")
    return lines
