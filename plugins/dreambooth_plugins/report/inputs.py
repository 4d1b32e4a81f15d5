"""What other commands leave in a run's folder: evaluations, findings, lists of samples."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from dreambooth.files import MAX_JSON, read_limited
from dreambooth.helpers.text import flat
from dreambooth.runs.evaluations import OWN, findings_file, id_in
from dreambooth_plugins.report.document import (
    MAX_EVALUATIONS,
    MAX_FINDINGS,
    Better,
    Evaluation,
    Finding,
    Mark,
    Measure,
    PictureMeasure,
)
from dreambooth_plugins.report.private import clipped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dreambooth.runs.folder import RunFolder
    from dreambooth_plugins.report.private import Scrub

MEASURES = {
    "subject_similarity": "Likeness to your photographs",
    "prompt_alignment": "Doing what the prompt says",
    "prompt_contrast": "Telling one prompt from another",
    "prior_preservation": "Others of its class drawn like yours",
    "diversity": "Variety of the pictures",
    "drift": "Change in unrelated pictures",
    "copying": "Nearness to a single photograph",
    "photo_distance": "Distance to the nearest photograph, by pixels",
}
_STEP = re.compile(r"step-(\d{1,12})")


def _plain_name(name: str) -> str:
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise ValueError("not the name of a file in the same folder")
    return name


class _Record(BaseModel):
    """What must be so; more may stand there."""

    model_config = ConfigDict(extra="ignore")


class SampleRecord(_Record):
    """One picture of a set of samples."""

    file: Annotated[str, AfterValidator(_plain_name)]
    prompt: str = Field(max_length=100_000)
    seed: int = 0


class _Metric(_Record):
    name: str
    value: FiniteFloat
    stderr: FiniteFloat | None = None
    n: int = 0
    baseline: FiniteFloat | None = None
    real: FiniteFloat | None = None
    better: Better = "higher"


class _Picture(_Record):
    prompt: str
    seed: int = 0
    values: dict[str, FiniteFloat] = Field(default={})


class _Evaluation(_Record):
    step: int = Field(ge=0)
    encoder: str = "an encoder that is not named"
    metrics: list[_Metric] = Field(default=[], max_length=64)
    pictures: list[_Picture] = Field(default=[], max_length=4096)


class _Finding(_Record):
    id: str = ""
    mark: Mark
    sentence: str
    evidence: str | None = None
    next: str | None = None


class _Findings(_Record):
    findings: list[_Finding] = Field(default=[])


def read_samples(folder: Path) -> list[SampleRecord]:
    """Return what a set of samples lists; `OSError` or `ValueError` where that cannot be read."""
    rows = json.loads(_text(folder / "prompts.json"))
    if not isinstance(rows, list):
        raise ValueError("not a list")
    return [SampleRecord.model_validate(row) for row in rows[:4096]]


def _text(path: Path) -> str:
    return read_limited(path, MAX_JSON).decode("utf-8")


def read_evaluations(
    folder: Path, scrub: Scrub, key_of: Callable[[str], str]
) -> tuple[list[Evaluation], list[str]]:
    """Return a run's evaluations by step, and a sentence for each file that cannot be read."""
    found: list[Evaluation] = []
    notes: list[str] = []
    for path in sorted((folder / "evaluations").glob("step-*.json"))[-MAX_EVALUATIONS:]:
        if (data := _checked(path, _Evaluation, notes)) is None:
            continue
        measures = [
            Measure(
                clipped(flat(m.name), 80),
                title_of(m.name),
                m.value,
                m.stderr,
                m.n,
                m.baseline,
                m.real,
                m.better,
            )
            for m in data.metrics
        ]
        pictures = [
            PictureMeasure(
                scrub.words(p.prompt),
                key_of(p.prompt),
                p.seed,
                {clipped(flat(name), 80): value for name, value in p.values.items()},
            )
            for p in data.pictures
        ]
        encoder = scrub.words(data.encoder)
        found.append(
            Evaluation(data.step, encoder, measures, pictures, id_in(path.name), path.name)
        )
    return sorted(found, key=lambda e: e.step), notes


def title_of(name: str) -> str:
    """Return what a measure is called in plain words."""
    return MEASURES.get(name) or clipped(flat(name.replace("_", " ")).capitalize(), 80)


def surest(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Return the evaluation whose findings count: of the run's last step, of the most pictures.

    Those of the run's own samples where others are of no more: they know since when.
    """
    last = [e for e in evaluations if e.step == evaluations[-1].step]
    return max(last, key=lambda e: (len(e.pictures), e.asked == OWN), default=None)


def read_findings(
    folder: RunFolder, evaluations: Sequence[Evaluation], scrub: Scrub
) -> tuple[list[Finding], list[str]]:
    """Return a run's findings, problems first, and a sentence where they cannot be read.

    The run's own, or those that `dbt evaluate` left of more pictures of the last step.
    """
    best, notes = surest(evaluations), list[str]()
    path = findings_file(folder, best.file if best else "")
    path = path if path.exists() else folder.findings
    if not path.exists() or (data := _checked(path, _Findings, notes)) is None:
        return [], notes
    rank = {"problem": 0, "look": 1, "good": 2}
    rows = sorted(data.findings, key=lambda f: rank[f.mark])
    if len(rows) > MAX_FINDINGS:
        notes.append(f"{len(rows) - MAX_FINDINGS} more findings are in findings.json of the run.")
    return [_shown(row, scrub) for row in rows[:MAX_FINDINGS]], notes


def _shown(row: _Finding, scrub: Scrub) -> Finding:
    evidence = scrub.words(row.evidence or "")
    step = _STEP.search(evidence)
    return Finding(
        scrub.words(row.id),
        row.mark,
        scrub.words(row.sentence),
        evidence,
        int(step[1]) if step else None,
        scrub.words(row.next or ""),
    )


T = TypeVar("T", bound=BaseModel)


def _checked(path: Path, kind: type[T], notes: list[str]) -> T | None:
    inside = path.parent.name == "evaluations"
    name = clipped(f"evaluations/{path.name}" if inside else path.name, 80)
    try:
        data: Any = json.loads(_text(path))
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        notes.append(f"{name} is left out: {where or 'the file'} {first['msg'].lower()}.")
    except (OSError, ValueError, RecursionError):
        notes.append(f"{name} is left out: it cannot be read.")
    return None
