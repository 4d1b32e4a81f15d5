"""The formulas of the metrics: from evidence and an encoder to scores.

All are means of cosines of unit vectors. Definitions follow the DreamBooth paper (Ruiz et al. 2023,
section 4.2 and supplement): likeness (DINO, CLIP-I), prompt fidelity (CLIP-T), PRES and DIV.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageOps

from dreambooth.interfaces import Score
from dreambooth.interfaces.data import without_identifier
from dreambooth_plugins.metric.judge.statistics import mean_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Literal

    from torch import Tensor

    from dreambooth.interfaces import Drawing, Evidence
    from dreambooth_plugins.metric.judge.encoders import Opened

    PairDistance = Callable[[Sequence[Image.Image]], Tensor]
    """Pictures -> distances [B, B]."""

BORDER = 0.1
"""Room left around the subject where its mask is known, as a share of its box."""
EMPTY_MASK = 0.01


def subjects(evidence: Evidence) -> list[Image.Image]:
    """Return the photographs, cut to the subject's box where a mask says where that is."""
    masks = [*evidence.masks, *[None] * len(evidence.instances)]
    return [cut(image, mask) for image, mask in zip(evidence.instances, masks, strict=False)]


def cut(image: Image.Image, mask: Image.Image | None) -> Image.Image:
    """Return the square around what a mask shows, with a border; the whole picture without one."""
    box = mask.point(lambda value: 255 if value > 127 else 0).getbbox() if mask else None
    if box is None:
        return image
    left, top, right, bottom = box
    side = round(max(right - left, bottom - top) * (1 + 2 * BORDER))
    if side * side < EMPTY_MASK * image.width * image.height:
        return image
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    inside = (max(0, x), max(0, y), min(image.width, x + side), min(image.height, y + side))
    return image.crop(inside)


def subject_similarity(evidence: Evidence, encoder: Opened) -> list[Score]:
    """Likeness: a picture's mean cosine to the photographs, over pictures that name the subject.

    `real`: each photograph's mean cosine to the others (DreamBench's real images).
    """
    return _like_photographs(evidence, encoder, "subject_similarity", evidence.is_subject, "higher")


def prior_preservation(evidence: Evidence, encoder: Opened) -> list[Score]:
    """PRES: mean cosine of the *class's* pictures to the subject's photographs; lower is better."""
    return _like_photographs(evidence, encoder, "prior_preservation", evidence.is_class, "lower")


def _like_photographs(
    evidence: Evidence,
    encoder: Opened,
    name: str,
    wanted: Callable[[Drawing], bool],
    better: Literal["higher", "lower"],
) -> list[Score]:
    photographs = encoder.images(subjects(evidence)) if evidence.instances else None
    if photographs is None:
        return []

    def value(drawings: Sequence[Drawing]) -> Tensor:
        return (encoder.images([d.image for d in drawings]) @ photographs.T).mean(1)

    return scored(name, evidence, encoder.label, wanted, value, better, _among(photographs))


def _among(vectors: Tensor) -> float | None:
    """Return the mean cosine of different vectors; None of fewer than two."""
    n = len(vectors)
    if n < 2:
        return None
    cosines = vectors @ vectors.T
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))


def prompt_alignment(evidence: Evidence, encoder: Opened) -> list[Score]:
    """CLIP-T: cosine of a picture and its prompt without the identifier, over all that name it.

    `real`: the photographs against "a photo of a CLASS".
    """
    subject = evidence.subject

    def text(drawing: Drawing) -> str:
        return without_identifier(drawing.prompt, subject)

    distinct = list(dict.fromkeys(text(d) for d in evidence.drawings if evidence.is_subject(d)))
    if not distinct:
        return []
    embedded = dict(zip(distinct, encoder.texts(distinct), strict=True))

    def value(drawings: Sequence[Drawing]) -> Tensor:
        wanted = torch.stack([embedded[text(d)] for d in drawings])
        return (encoder.images([d.image for d in drawings]) * wanted).sum(1)

    real = None
    if evidence.instances:
        plain = encoder.texts([f"a photo of a {subject.class_noun}"])
        real = float((encoder.images(list(evidence.instances)) @ plain.T).mean())
    name, label = "prompt_alignment", encoder.label
    return scored(name, evidence, label, evidence.is_subject, value, "higher", real)


def prompt_contrast(evidence: Evidence, encoder: Opened) -> list[Score]:
    """How much better a picture fits its own prompt than the others that name the subject.

    Cosine with its words less the mean cosine with theirs, the identifier left out; needs two
    such prompts. What all of them have in common cancels out: a learned subject may well look less
    like its class noun than the untrained base's did, and still be drawn as the prompt says.
    """
    subject = evidence.subject

    def text(drawing: Drawing) -> str:
        return without_identifier(drawing.prompt, subject)

    distinct = list(dict.fromkeys(text(d) for d in evidence.drawings if evidence.is_subject(d)))
    if len(distinct) < 2:
        return []
    embedded = encoder.texts(distinct)

    def value(drawings: Sequence[Drawing]) -> Tensor:
        cosines = encoder.images([d.image for d in drawings]) @ embedded.T
        own = cosines[torch.arange(len(drawings)), [distinct.index(text(d)) for d in drawings]]
        return own - (cosines.sum(1) - own) / (len(distinct) - 1)

    name, label = "prompt_contrast", encoder.label
    return scored(name, evidence, label, evidence.is_subject, value, "higher", None)


def diversity(evidence: Evidence, distances: PairDistance, label: str) -> list[Score]:
    """DIV: mean distance of two pictures of one prompt, over prompts that name the subject.

    With LPIPS the paper's; with an encoder 1 - cosine. `real`: of the photographs.
    """

    def value(drawings: Sequence[Drawing]) -> Tensor:
        found = distances([d.image for d in drawings])
        same = torch.tensor([[a.prompt == b.prompt for b in drawings] for a in drawings])
        same.fill_diagonal_(False)
        count = same.sum(1)
        mean = (found * same).sum(1) / count.clamp(min=1)
        return torch.where(count > 0, mean, torch.nan)

    real = None
    if len(evidence.instances) > 1:
        n = len(evidence.instances)
        real = float(distances(list(evidence.instances)).sum() / (n * (n - 1)))
    return scored("diversity", evidence, label, evidence.is_subject, value, "higher", real)


def cosine_distances(encoder: Opened) -> PairDistance:
    """Return 1 - cosine [B, B] of pictures, 0 of a picture and itself."""

    def between(images: Sequence[Image.Image]) -> Tensor:
        vectors = encoder.images(images)
        return (1 - vectors @ vectors.T).clamp(min=0).fill_diagonal_(0.0)

    return between


def drift(evidence: Evidence, encoder: Opened) -> list[Score]:
    """1 - cosine of the tuned and the untrained base's picture of one prompt and seed.

    Over prompts that name neither subject nor class; 0 is no drift.
    """
    pairs = {
        i: (drawing, before)
        for i, drawing in enumerate(evidence.drawings)
        if evidence.is_unrelated(drawing) and (before := evidence.before(drawing)) is not None
    }
    if not pairs:
        return []
    tuned = encoder.images([a.image for a, _ in pairs.values()])
    base = encoder.images([b.image for _, b in pairs.values()])
    found = (1 - (tuned * base).sum(1)).clamp(min=0).tolist()
    values = dict(zip(pairs, map(float, found), strict=True))
    mean = mean_of(values, {i: a.prompt for i, (a, _) in pairs.items()})
    assert mean is not None
    return [
        Score(
            "drift", mean.value, encoder.label, mean.stderr, mean.n, 0.0,
            None if mean.stderr is None else (mean.value, mean.stderr), None, "lower", values,
        )
    ]  # fmt: skip


def copying(evidence: Evidence, encoder: Opened) -> list[Score]:
    """Nearness of a picture that names the subject to its *nearest* photograph or mirror image.

    The photographs are the crops as trained. `real`: each photograph's nearest other one. A mean
    above `real` says that pictures are closer to one photograph than photographs are to each other.
    """
    if not evidence.instances:
        return []
    crops = list(evidence.instances)
    both = encoder.images([*crops, *(ImageOps.mirror(c) for c in crops)])

    def value(drawings: Sequence[Drawing]) -> Tensor:
        return (encoder.images([d.image for d in drawings]) @ both.T).amax(1)

    real = None
    if len(crops) > 1:
        plain = both[: len(crops)]
        cosines = (plain @ plain.T).fill_diagonal_(-1.0)
        real = float(cosines.amax(1).mean())
    name, label = "copying", encoder.label
    return scored(name, evidence, label, evidence.is_subject, value, "lower", real)


def scored(
    name: str,
    evidence: Evidence,
    label: str,
    wanted: Callable[[Drawing], bool],
    value: Callable[[Sequence[Drawing]], Tensor],
    better: Literal["higher", "lower"],
    real: float | None,
) -> list[Score]:
    """Return the score of the wanted pictures beside the untrained base's, paired where it can be.

    What is not a number (a single picture of a prompt has no distance) is left out.
    """
    chosen = {i: d for i, d in enumerate(evidence.drawings) if wanted(d)}
    if not chosen:
        return []
    values = _finite(chosen, value([*chosen.values()]))
    groups = {i: d.prompt for i, d in chosen.items()}
    mean = mean_of(values, groups)
    if mean is None:
        return []
    before = {i: found for i, d in chosen.items() if (found := evidence.before(d)) is not None}
    base = _finite(before, value([*before.values()])) if before else {}
    untrained = mean_of(base, groups)
    change = mean_of({i: values[i] - base[i] for i in values if i in base}, groups)
    return [
        Score(
            name=name,
            value=mean.value,
            encoder=label,
            stderr=mean.stderr,
            n=mean.n,
            baseline=None if untrained is None else untrained.value,
            change=None
            if change is None or change.stderr is None
            else (change.value, change.stderr),
            real=real,
            better=better,
            pictures=values,
        )
    ]


def _finite(chosen: Mapping[int, Drawing], values: Tensor) -> dict[int, float]:
    pairs = zip(chosen, values.tolist(), strict=True)
    return {i: float(v) for i, v in pairs if v == v}  # noqa: PLR0124
