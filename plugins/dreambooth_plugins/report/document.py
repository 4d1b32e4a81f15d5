"""What a report shows: plain data of bounded size, read from run folders, written into a page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

MAX_STEPS, MAX_PROMPTS, MAX_SEEDS = 8, 12, 4
"""Columns and rows of the filmstrip, and pictures of one prompt."""
MAX_POINTS, MAX_CURVES = 1000, 24
MAX_PHOTOS, MAX_EVALUATIONS, MAX_FINDINGS = 24, 64, 7
MAX_TEXT = 600
"""Characters of a prompt, a caption or a sentence."""

Mark = Literal["good", "look", "problem"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Photo:
    """One of the subject's photographs, as it was cut for training."""

    name: str
    picture: str
    """Name in the pool of pictures."""
    caption: str
    size: str
    held_out: bool = False


@dataclass(frozen=True)
class Row:
    """One prompt with one seed, over the steps."""

    prompt: str
    key: str
    """The prompt without the run's own identifier: equal in runs that ask for the same."""
    seed: int
    number: int
    """Which picture of its prompt it is, from 1."""
    pictures: dict[int, str] = field(default_factory=dict)
    """Step -> name in the pool of pictures."""


@dataclass(frozen=True)
class Samples:
    """Pictures drawn while training: rows are prompts and seeds, columns are steps."""

    steps: list[int]
    rows: list[Row]
    asked: int = 0
    """Prompts the run has, also those that are not shown."""


@dataclass(frozen=True)
class Curve:
    """One logged number over the steps, thinned so that its peaks stay."""

    name: str
    title: str
    group: Literal["check", "training", "measures", "more"]
    steps: list[int]
    values: list[float]
    logged: int
    """Points there were before thinning."""


@dataclass(frozen=True)
class Measure:
    """A measured mean with its uncertainty and what it is held against."""

    name: str
    title: str
    value: float
    stderr: float | None
    n: int
    baseline: float | None
    """The same, measured on the untrained model's pictures."""
    real: float | None
    """The same between the photographs themselves."""
    better: Better


@dataclass(frozen=True)
class PictureMeasure:
    """What was measured on one picture."""

    prompt: str
    key: str
    seed: int
    values: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Everything measured at one step; numbers of different encoders do not compare."""

    step: int
    encoder: str
    measures: list[Measure]
    pictures: list[PictureMeasure]
    asked: str = ""
    """Tells other prompts and encoders (`dbt evaluate`) from the run's own samples: empty."""
    file: str = ""

    def measure(self, name: str) -> Measure | None:
        """Return a measure by its name."""
        return next((m for m in self.measures if m.name == name), None)


def comparable(evaluations: list[Evaluation]) -> list[Evaluation]:
    """Return the evaluations whose numbers compare: one encoder, the last one's, and one set of
    prompts, that of the most steps; none of none."""
    if not evaluations:
        return []
    same = [e for e in evaluations if e.encoder == evaluations[-1].encoder]
    asked = Counter(e.asked for e in same)
    return [e for e in same if e.asked == max(asked, key=lambda a: asked[a])]


@dataclass(frozen=True)
class Finding:
    """One thing to know, in plain words, and what to do next."""

    id: str
    mark: Mark
    sentence: str
    evidence: str
    step: int | None
    next: str


@dataclass(frozen=True)
class Option:
    """An option of the job."""

    key: str
    value: str
    changed: bool | None
    """Whether it differs from its default; None where that cannot be known here."""


@dataclass(frozen=True)
class Run:
    """One run."""

    name: str
    address: str
    """The run in a command, from the folder that holds its job."""
    subject: str
    state: str
    steps: int
    facts: list[tuple[str, str]]
    """What it was made with: label and value."""
    samples: Samples
    photos: list[Photo]
    curves: list[Curve]
    evaluations: list[Evaluation]
    findings: list[Finding]
    options: list[Option]
    files: list[tuple[str, str]]
    """Exported files and their sizes."""
    checks: list[str]
    pictures_seen: dict[str, str]
    """Name -> SHA-256 of the photographs: runs with others do not compare."""
    verdict: str
    best: int | None
    notes: list[str]
    """What is missing or was left out, in plain sentences."""


@dataclass(frozen=True)
class Report:
    """All of a page."""

    runs: list[Run]
    pool: dict[str, bytes]
    """Name -> WebP file."""
    made_with: str
    notes: list[str] = field(default_factory=list)
