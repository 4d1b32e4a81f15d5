"""Rules over measured numbers: learned, copying, class changed, prompts ignored, too few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dreambooth import FindingRule
from dreambooth.interfaces import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.interfaces import Evaluation, RunRecord, Score


def where(evaluation: Evaluation) -> str:
    """Return where the pictures of an evaluation lie."""
    return f"step-{evaluation.step:06d}"


def share(score: Score) -> float | None:
    """Return how far a number went from the untrained base's to the photographs' own, 0 to 1.

    None where one of the two is missing, or where the base is as near as photographs are.
    """
    if score.baseline is None or score.real is None or score.real - score.baseline < 0.02:
        return None
    return (score.value - score.baseline) / (score.real - score.baseline)


class Learned(FindingRule):
    """Whether the subject was learned.

    The share of the way from the untrained base's likeness to the photographs' own. Set on three
    drawn subjects (`make findings`): good runs go 0.8 to 1.3 of it, hardly trained ones none.
    """

    kind: Literal["learned"] = "learned"
    enough: float = Field(default=0.5, gt=0.0)
    """Share of the way that counts as learned."""
    least: float = Field(default=0.25, ge=0.0)
    """Below this share nothing was learned."""
    errors: float = Field(default=2.0, ge=0.0)
    """By how many standard errors likeness must have risen at all."""

    def judge(self, record: RunRecord) -> Sequence[Finding]:
        """Say whether, and how well."""
        last = record.last
        score = last.score("subject_similarity") if last else None
        if last is None or score is None or score.baseline is None:
            return []
        noun = record.job.subject.class_noun
        rose, error = score.change or (score.value - score.baseline, 0.0)
        went = share(score)
        # One photograph has no likeness to itself; then the rise alone tells.
        reached = went if went is not None else (1.0 if rose > 0.05 else 0.0)
        real = f", photographs among themselves {score.real:.2f}" if score.real is not None else ""
        told = (
            f"likeness {score.value:.2f}, before {score.baseline:.2f}{real} "
            f"({score.encoder}), {where(last)}"
        )
        if rose <= self.errors * error or reached < self.least:
            return [
                Finding(
                    "problem",
                    f"It has not learned your {noun}: pictures look hardly more like your "
                    "photographs than before training.",
                    told,
                    "Train for more steps (train.steps), or with a higher optimizer.lr.",
                )
            ]
        if reached < self.enough:
            return [
                Finding(
                    "look",
                    f"It has learned your {noun} in part.",
                    told,
                    "Train for more steps: -o train.steps=N goes on from here.",
                )
            ]
        close = "about as close to your photographs as these are to each other"
        near = close if reached >= 0.85 else "clearly closer to your photographs than before"
        return [Finding("good", f"It has learned your {noun}: pictures are {near}.", told)]


class Copies(FindingRule):
    """Whether pictures repeat single photographs instead of showing the subject anew.

    A picture counts as a copy where its nearest photograph (mirrored or not) is nearer than
    photographs are to their own nearest, by `part` of what is left up to 1; or where its pixels at
    16 x 16 are within `distance` of a photograph's. Set on three drawn subjects (`make findings`):
    pictures of good runs go 0.33 of the way at most and stay 0.13 apart; of runs that repeat one
    of three pictures, most go 0.96 of it and come within 0.06. `pictures` lies between.
    """

    kind: Literal["copying"] = "copying"
    part: float = Field(default=0.8, ge=0.0, le=1.0)
    """Part of the way from the photographs' own nearness to 1."""
    distance: float = Field(default=0.07, ge=0.0, le=1.0)
    """RMS distance of pixels (0..1), at most."""
    pictures: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the pictures that must be copies."""

    def judge(self, record: RunRecord) -> Sequence[Finding]:
        """Name the step, the share and the nearest example."""
        last = record.last
        score = last.score("copying") if last else None
        if last is None or score is None or not (copies := self._copies(last)):
            return []
        worst = max(copies, key=lambda i: score.pictures.get(i, 0.0))
        first = next(e.step for e in record.evaluations if self._copies(e))
        real = "" if score.real is None else f", photographs among themselves {score.real:.2f}"
        return [
            Finding(
                "problem",
                f"It copies: {len(copies)} of {len(score.pictures)} pictures nearly repeat one of "
                "your photographs.",
                f"nearest {score.pictures.get(worst, 0.0):.2f}{real} "
                f"({score.encoder}), {where(last)}, picture {worst}",
                f"Use an earlier step than {first}, fewer steps, or more varied photographs.",
            )
        ]

    def _copies(self, evaluation: Evaluation) -> list[int]:
        """Return the places of copies; nothing where they are too few to matter."""
        near, apart = evaluation.score("copying"), evaluation.score("photo_distance")
        found: set[int] = set()
        if near is not None and near.real is not None:
            limit = near.real + self.part * (1 - near.real)
            found |= {i for i, value in near.pictures.items() if value > limit}
        if apart is not None:
            found |= {i for i, value in apart.pictures.items() if value <= self.distance}
        count = max(len(s.pictures) for s in (near, apart) if s) if near or apart else 0
        return sorted(found) if found and len(found) >= self.pictures * count else []


class ClassChanged(FindingRule):
    """Whether others of the class have come to look like the subject (PRES; lower is better).

    Set on three drawn subjects (`make findings`): with prior preservation the class goes 0.1 of the
    way to the photographs at most, without it 0.8 to 1.0.
    """

    kind: Literal["class_changed"] = "class_changed"
    part: float = Field(default=0.35, gt=0.0)
    """Part of the way from the base's class to the photographs that counts as changed."""
    rise: float = Field(default=0.1, gt=0.0)
    """How much nearer counts as changed where the base's class is as near as photographs are to
    each other, and there is no way to take a part of."""
    errors: float = Field(default=2.0, ge=0.0)
    """By how many standard errors it must have changed at all."""

    def judge(self, record: RunRecord) -> Sequence[Finding]:
        """Say how much nearer the class has come to the subject."""
        last = record.last
        score = last.score("prior_preservation") if last else None
        if last is None or score is None or score.baseline is None:
            return []
        went = share(score)
        noun = record.job.subject.class_noun
        rose, error = score.change or (score.value - score.baseline, 0.0)
        told = (
            f"others of the class {score.value:.2f}, before {score.baseline:.2f} "
            f"({score.encoder}), {where(last)}"
        )
        far = rose >= self.rise if went is None else went >= self.part
        if not far or rose <= self.errors * error:
            return []
        nearer = f"{score.baseline:.2f} to {score.value:.2f}"
        has_prior = record.job.prior.has_rows()
        act = "Raise loss.prior_weight, or train fewer steps." if has_prior else (
            "Turn on class pictures: prior: generated."
        )  # fmt: skip
        return [
            Finding(
                "problem",
                f'Others of its class have changed too: "a {noun}" now looks more like yours '
                f"than before training ({nearer}).",
                told,
                act,
            )
        ]


class PromptsIgnored(FindingRule):
    """From which step on prompts are obeyed less than by the untrained base.

    By what a picture's own prompt has over the others that name the subject (`prompt_contrast`).
    Set on three drawn subjects (`make findings`): good runs keep 0.89 of it and more, runs that
    draw three pictures whatever they are asked for 0.12 at most.
    With one such prompt alone there is no contrast, and prompt alignment is taken, from the lower
    one of the untrained base's and the photographs' own: a subject that looks unlike its class
    noun fits words less when it is drawn well.
    """

    kind: Literal["prompts_ignored"] = "prompts_ignored"
    fall: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of the untrained base's contrast that must be lost."""
    fall_of_one: float = Field(default=0.25, gt=0.0, lt=1.0)
    """Share of the alignment that must be lost, where one prompt alone names the subject."""
    errors: float = Field(default=2.0, ge=0.0)
    """By how many standard errors it must have fallen."""

    def judge(self, record: RunRecord) -> Sequence[Finding]:
        """Name the first step after which it stays so."""
        since: Evaluation | None = None
        for evaluation in reversed(record.evaluations):
            if not self._ignores(evaluation):
                break
            since = evaluation
        last = record.last
        score = self._score(last) if last else None
        if since is None or last is None or score is None or score.baseline is None:
            return []
        # Of a step that is measured alone nobody knows since when.
        when = f"From step {since.step} on" if len(record.evaluations) > 1 else "At the end"
        apart = score.name == "prompt_contrast"
        what = "a picture fits its own prompt better than the others" if apart else "words fit"
        return [
            Finding(
                "problem",
                f"{when} it listens less to the rest of the prompt.",
                f"{what} by {score.value:.2f}, before {score.baseline:.2f} "
                f"({score.encoder}), {where(last)}",
                "Use an earlier step, or lower optimizer.lr or the adapter's rank.",
            )
        ]

    def _score(self, evaluation: Evaluation) -> Score | None:
        return evaluation.score("prompt_contrast") or evaluation.score("prompt_alignment")

    def _ignores(self, evaluation: Evaluation) -> bool:
        score = self._score(evaluation)
        if score is None or score.baseline is None:
            return False
        error = score.change[1] if score.change else 0.0
        fall, start = self.fall, score.baseline
        if score.name == "prompt_alignment":
            fall = self.fall_of_one
            start = min(start, start if score.real is None else score.real)
        return start - score.value > max(self.errors * error, fall * abs(start))


class TooFew(FindingRule):
    """Whether there are enough pictures for the numbers to mean anything."""

    kind: Literal["too_few"] = "too_few"
    pictures: int = Field(default=8, ge=2)
    """Pictures that name the subject, at least."""
    photographs: int = Field(default=3, ge=1)
    """Photographs, at least."""

    def judge(self, record: RunRecord) -> Sequence[Finding]:
        """Say by how much the likeness may swing."""
        last = record.last
        score = last.score("subject_similarity") if last else None
        photos = len(record.photographs)
        if score is None or (score.n >= self.pictures and photos >= self.photographs):
            return []
        swing = f" They may swing by {2 * score.stderr:.2f}." if score.stderr else ""
        one = "photograph" if photos == 1 else "photographs"
        many = "picture" if score.n == 1 else "pictures"
        return [
            Finding(
                "look",
                f"With {photos} {one} and {score.n} {many} these numbers say little.{swing}",
                f"n {score.n}, {score.encoder}",
                "Draw more: dbt evaluate RUN --images-per-prompt 8, or samples.per_prompt.",
            )
        ]
