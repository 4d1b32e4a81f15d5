"""Drawn pictures as the job's safety checker lets them be shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from dreambooth.interfaces import Action, Context, SafetyChecker
    from dreambooth.job import Job

AT_ONCE = 8
BLURRED = 6
"""Cells a side that are left of a blurred picture: nothing can be made out, at any size."""
EMPTY = (128, 128, 128)


@dataclass(frozen=True)
class Verdict:
    """What a checker said of one picture, and what was done; stands in the picture's metadata."""

    checker: str
    """The checker's kind."""
    score: float
    unsafe: bool
    """Whether the score is above the checker's threshold."""
    action: Action
    """What is done with unsafe pictures."""

    def as_dict(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)


def active(checker: SafetyChecker | None, job: Job) -> SafetyChecker | None:
    """Return the checker where it looks at the pictures of this job's model, else None."""
    if checker is None or checker.action == "off" or job.model.describe().embedded:
        return None
    return checker


def judge(
    ctx: Context, checker: SafetyChecker, images: Sequence[Image.Image]
) -> list[tuple[Image.Image, Verdict]]:
    """Return each picture as it may be shown, with its verdict; what is unsafe is told once."""
    scores: list[float] = []
    with ctx.progress("Checking pictures", len(images)) as progress:
        for first in range(0, len(images), AT_ONCE):
            some = [image.convert("RGB") for image in images[first : first + AT_ONCE]]
            scores += map(float, checker.scores(some, str(ctx.device)))
            progress.advance(len(some))
    limit, action = checker.threshold, checker.action
    verdicts = [Verdict(checker.kind, s, s > limit, action) for s in scores]
    if bad := [verdict.score for verdict in verdicts if verdict.unsafe]:
        done = {"blur": "blurred", "refuse": "left out"}.get(action, "marked")
        ctx.warn(
            f"safety: {len(bad)} of {len(images)} pictures {done} by {checker.kind}, whose highest "
            f"score is {max(bad):.3g} (threshold {limit:g})"
        )
    shown = zip(images, verdicts, strict=True)
    return [(as_shown(image, verdict), verdict) for image, verdict in shown]


def as_shown(image: Image.Image, verdict: Verdict) -> Image.Image:
    """Return a picture as it may be shown: itself, blurred beyond recognition, or an empty card."""
    from PIL import Image as Pillow

    if not verdict.unsafe or verdict.action in {"off", "flag"}:
        return image
    if verdict.action == "refuse":
        return Pillow.new("RGB", image.size, EMPTY)
    few = image.convert("RGB").resize((BLURRED, BLURRED), Pillow.Resampling.BOX)
    return few.resize(image.size, Pillow.Resampling.BICUBIC)


def highest(verdicts: Sequence[Verdict | None]) -> dict[str, float]:
    """Return the highest score of a set of pictures, as it is logged: `safety/<checker>`."""
    found: dict[str, float] = {}
    for verdict in verdicts:
        if verdict is not None:
            name = f"safety/{verdict.checker}"
            found[name] = max(verdict.score, found.get(name, verdict.score))
    return found
