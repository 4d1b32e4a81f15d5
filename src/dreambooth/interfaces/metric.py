"""The metric and finding slots: numbers about drawn pictures, and what they say in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dreambooth.component import AnyJob, Component
from dreambooth.interfaces.data import without_identifier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from dreambooth.interfaces.context import Context
    from dreambooth.interfaces.data import Subject


@dataclass(frozen=True)
class Drawing:
    """One drawn picture."""

    image: Image
    prompt: str
    """As it was drawn: identifier and class noun filled in."""
    seed: int


@dataclass(frozen=True)
class Evidence:
    """What a metric looks at: one set of drawn pictures and what they are held against."""

    drawings: Sequence[Drawing]
    instances: Sequence[Image]
    """The instance images, at training size, without augmentation."""
    subject: Subject
    untrained: Sequence[Drawing] = ()
    """The untrained base's pictures of the same prompts and seeds; empty where none are known."""
    masks: Sequence[Image | None] = ()
    """Where the subject is in each instance image (mode L, white), where that is known."""

    def is_subject(self, drawing: Drawing) -> bool:
        """Say whether a picture's prompt names the subject."""
        prompt = " ".join(drawing.prompt.split())
        return without_identifier(prompt, self.subject) != prompt

    def is_class(self, drawing: Drawing) -> bool:
        """Say whether a picture's prompt names the class and not the subject."""
        if self.is_subject(drawing):
            return False
        noun = self.subject.model_copy(update={"identifier": self.subject.class_noun})
        prompt = " ".join(drawing.prompt.split())
        return without_identifier(prompt, noun) != prompt

    def is_unrelated(self, drawing: Drawing) -> bool:
        """Say whether a picture's prompt names neither the subject nor its class."""
        return not self.is_subject(drawing) and not self.is_class(drawing)

    def before(self, drawing: Drawing) -> Drawing | None:
        """Return the untrained base's picture of the same prompt and seed."""
        alike = (d for d in self.untrained if (d.prompt, d.seed) == (drawing.prompt, drawing.seed))
        return next(alike, None)


@dataclass(frozen=True)
class Score:
    """One number, with what makes it readable."""

    name: str
    """`subject_similarity`, ...; logged as `metric/<name>/<encoder>`."""
    value: float
    encoder: str = ""
    """What turned pictures into numbers; numbers of different encoders are never compared."""
    stderr: float | None = None
    """Standard error of `value`; None for fewer than two pictures."""
    n: int = 0
    """How many pictures it is the mean of."""
    baseline: float | None = None
    """The same of the untrained base's pictures."""
    change: tuple[float, float] | None = None
    """Mean and standard error of the difference to the untrained base, paired by prompt and
    seed."""
    real: float | None = None
    """The same of the photographs themselves."""
    better: Literal["higher", "lower"] = "higher"
    pictures: Mapping[int, float] = field(default_factory=dict)
    """The value of single pictures, by their place in `Evidence.drawings`."""

    @property
    def logged(self) -> str:
        """The name it is logged under, after `metric/`."""
        return f"{self.name}/{self.encoder}" if self.encoder else self.name


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one step of a run, as a file in `evaluations/` holds them."""

    step: int
    scores: Sequence[Score]
    drawings: Sequence[Drawing]
    file: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: `prompts`, `images_per_prompt`, `photographs`."""

    def score(self, name: str) -> Score | None:
        """Return the score of a name; None where that was not measured."""
        return next((score for score in self.scores if score.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """Return what is written to the file."""
        names = list(dict.fromkeys(score.encoder for score in self.scores if score.encoder))
        return {
            "version": 1,
            "step": self.step,
            "encoder": names[0] if names else "",
            **self.settings,
            "metrics": [_plain(score) for score in self.scores],
            "pictures": [
                {
                    "prompt": drawing.prompt,
                    "seed": drawing.seed,
                    "values": {s.name: s.pictures[i] for s in self.scores if i in s.pictures},
                }
                for i, drawing in enumerate(self.drawings)
            ],
        }


def _plain(score: Score) -> dict[str, Any]:
    change = None
    if score.change is not None:
        change = {"value": score.change[0], "stderr": score.change[1]}
    return {
        "name": score.name,
        "encoder": score.encoder,
        "value": score.value,
        "stderr": score.stderr,
        "n": score.n,
        "baseline": score.baseline,
        "change": change,
        "real": score.real,
        "better": score.better,
    }


class Metric(Component):
    """Numbers computed from drawn samples. Hook: `register_metrics`.

    Implement `score`, or `measure` where more than the pictures by prompt is needed.
    """

    def score(
        self, samples: Mapping[str, Sequence[Image]], instances: Sequence[Image], ctx: Context
    ) -> Mapping[str, float]:
        """Score pictures by prompt against the instance images; names are logged as `metric/...`.

        `instances` are the first images of the data source, at training size.
        """
        raise NotImplementedError  # abstract

    def measure(self, evidence: Evidence, ctx: Context) -> Sequence[Score]:
        """Return scores with baseline and standard error; the default has those of `score`.

        `evidence` has what `score` is given, the untrained base's pictures, seeds and masks.
        """
        by_prompt: dict[str, list[Image]] = {}
        for drawing in evidence.drawings:
            by_prompt.setdefault(drawing.prompt, []).append(drawing.image)
        found = self.score(by_prompt, evidence.instances, ctx)
        return [Score(name, float(value)) for name, value in found.items()]


Mark = Literal["good", "look", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing worth saying of a run."""

    mark: Mark
    sentence: str
    """For somebody who has never trained a model: no "loss", no "overfitting"."""
    evidence: str = ""
    """The numbers behind it, and where to look (`step-000400`)."""
    next: str = ""
    """What to do about it."""


@dataclass(frozen=True)
class RunRecord:
    """What a rule looks at."""

    job: AnyJob
    evaluations: Sequence[Evaluation]
    """By step, all of the same prompts, seeds and encoder; the last one is the run's result."""
    photographs: Sequence[tuple[str, Image]] = ()
    """Names of the instance images, and the crops as trained."""

    @property
    def last(self) -> Evaluation | None:
        """The evaluation of the result; None where nothing was measured."""
        return self.evaluations[-1] if self.evaluations else None


class FindingRule(Component):
    """A rule; its `kind` is the finding's id. Hook: `register_findings`.

    Thresholds are options, and the docstring says where they come from.
    """

    def judge(self, record: RunRecord) -> Sequence[Finding]:
        """Return what there is to say; nothing where nothing was measured that tells it."""
        raise NotImplementedError  # abstract
