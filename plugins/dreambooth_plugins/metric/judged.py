"""Metrics that look through an encoder: their options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dreambooth import Metric, Problem
from dreambooth.component import JobPath
from dreambooth.errors import JobError
from dreambooth.interfaces import Evidence
from dreambooth_plugins.metric.judge.names import AUTO, ENET, find

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from PIL.Image import Image

    from dreambooth import Job
    from dreambooth.interfaces import Context, ModelInfo, Score
    from dreambooth_plugins.metric.judge.encoders import Opened
    from dreambooth_plugins.metric.judge.names import Encoder


class Judged(Metric):
    """A metric that needs an encoder; subclasses give a formula."""

    encoder: str = Field(default=AUTO, min_length=1)
    """`auto`: for an embedded base and pictures that are drawings, as its own are, the CLIP that
    was trained beside it; for photographs, and for other models, `enet-i`. Or `emoji-64-clip`,
    `emoji-128-clip`, `enet-i` (EfficientNet-lite0, the extra `judge`), or the folder of a CLIP,
    DINO or DINOv2 model in the form of transformers."""

    def reads_text(self) -> bool:
        """Say whether the encoder must compare pictures with words."""
        return False

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Report an encoder that is not there, or that cannot do what is asked."""
        at = ("metrics", job.metrics.index(self)) if self in job.metrics else ("metrics",)
        try:
            found = find(self.encoder, job)
        except JobError as error:
            yield Problem(at, error.message, error.hint)
            return
        if self.reads_text() and not found.reads_text:
            yield Problem(
                at,
                f"{self.kind} compares pictures with words, and {found.label} reads none",
                "name the folder of a CLIP model in encoder",
            )

    def chosen(self, ctx: Context) -> Encoder:
        """Return the encoder that is meant in this run."""
        return find(self.encoder, ctx.job)

    def score(
        self, samples: Mapping[str, Sequence[Image]], instances: Sequence[Image], ctx: Context
    ) -> Mapping[str, float]:
        """Return the score of pictures by prompt, without an untrained base to compare with."""
        from dreambooth.interfaces import Drawing

        drawings = [
            Drawing(image, prompt, i)
            for prompt, images in samples.items()
            for i, image in enumerate(images)
        ]
        found = self.measure(Evidence(drawings, list(instances), ctx.job.subject), ctx)
        return {score.logged: score.value for score in found}

    def measure(self, evidence: Evidence, ctx: Context) -> Sequence[Score]:
        """Return the score, beside the untrained base's and the photographs'."""
        from dreambooth_plugins.metric.judge.encoders import open_encoder

        chosen = self.chosen(ctx)
        if self.encoder == AUTO and chosen.family == "clip" and not self.reads_text():
            from dreambooth_plugins.metric.judge.drawn import are_drawings

            if not are_drawings(evidence.instances):
                # What draws and judges drawings finds any two photographs alike.
                try:
                    chosen = find(ENET)
                except JobError as error:
                    ctx.warn(f"not measured: {chosen.label} knows drawings alone; {error.hint}")
                    return []
        return self.formula(evidence, open_encoder(chosen, str(ctx.device)))

    def formula(self, evidence: Evidence, encoder: Opened) -> Sequence[Score]:
        """Return the score of the evidence through an encoder."""
        raise NotImplementedError  # abstract


class SubjectSimilarity(Judged):
    """Likeness to the subject: mean cosine to the photographs (DINO or CLIP-I in the papers).

    Over pictures whose prompt names the subject; where masks are known, photographs are cut to
    the subject. Higher is better, and about as high as the photographs among themselves is as high
    as it should get.
    """

    kind: Literal["subject_similarity"] = "subject_similarity"

    def formula(self, evidence: Evidence, encoder: Opened) -> Sequence[Score]:
        """Return the score; see `judge.measures`."""
        from dreambooth_plugins.metric.judge.measures import subject_similarity

        return subject_similarity(evidence, encoder)


class PromptAlignment(Judged):
    """How well pictures do what the prompt says: cosine with its words, the identifier left out.

    CLIP-T of the papers, and beside it `prompt_contrast`: how much better a picture fits its own
    prompt than the others that name the subject. Needs an encoder that reads text, a CLIP. Higher
    is better.
    """

    kind: Literal["prompt_alignment"] = "prompt_alignment"

    def reads_text(self) -> bool:
        """Say that words are compared."""
        return True

    def formula(self, evidence: Evidence, encoder: Opened) -> Sequence[Score]:
        """Return both scores; see `judge.measures`."""
        from dreambooth_plugins.metric.judge.measures import prompt_alignment, prompt_contrast

        return [*prompt_alignment(evidence, encoder), *prompt_contrast(evidence, encoder)]


class PriorPreservation(Judged):
    """Whether others of the class still look like themselves (PRES): lower is better.

    Mean cosine of pictures whose prompt names the class, and not the subject, to the photographs.
    """

    kind: Literal["prior_preservation"] = "prior_preservation"

    def formula(self, evidence: Evidence, encoder: Opened) -> Sequence[Score]:
        """Return the score; see `judge.measures`."""
        from dreambooth_plugins.metric.judge.measures import prior_preservation

        return prior_preservation(evidence, encoder)


class Drift(Judged):
    """How far pictures of other things have moved: 1 - cosine to the untrained base's, paired.

    Over prompts that name neither the subject nor its class: `samples.prompts` needs some. Lower
    is better.
    """

    kind: Literal["drift"] = "drift"

    def formula(self, evidence: Evidence, encoder: Opened) -> Sequence[Score]:
        """Return the score; see `judge.measures`."""
        from dreambooth_plugins.metric.judge.measures import drift

        return drift(evidence, encoder)


class Copying(Judged):
    """How near a picture is to its nearest photograph, mirrored or not: a warning, no goal.

    Over pictures whose prompt names the subject. Lower is better, below the photographs' own.
    Beside it `photo_distance`: the same by pixels at 16 x 16, where higher is better.
    """

    kind: Literal["copying"] = "copying"

    def formula(self, evidence: Evidence, encoder: Opened) -> Sequence[Score]:
        """Return the score; see `judge.measures`."""
        from dreambooth_plugins.metric.judge.measures import copying
        from dreambooth_plugins.metric.judge.nearness import photo_distance

        return [*copying(evidence, encoder), *photo_distance(evidence)]


class PerceptualDiversity(Judged):
    """How different pictures of one prompt are (DIV): LPIPS as in the paper, or 1 - cosine.

    Over pictures whose prompt names the subject. Higher is better.
    """

    kind: Literal["perceptual_diversity"] = "perceptual_diversity"
    lpips: JobPath | None = None
    """A folder with AlexNet's weights and LPIPS's heads; null measures 1 - cosine instead, and
    the encoder's name beside the number says so."""

    def measure(self, evidence: Evidence, ctx: Context) -> Sequence[Score]:
        """Return the score, beside the untrained base's and the photographs'."""
        from dreambooth_plugins.metric.judge.measures import diversity

        if self.lpips is None:
            return super().measure(evidence, ctx)
        from dreambooth_plugins.metric.judge.lpips import Lpips

        return diversity(evidence, Lpips(self.lpips).distances, "LPIPS")

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a folder or an encoder that is not there."""
        if self.lpips is None:
            yield from super().check(job, info)
        elif not self.lpips.is_dir():
            at = ("metrics", job.metrics.index(self), "lpips")
            yield Problem(at, f"there is no folder {self.lpips}", "name the folder of the weights")

    def formula(self, evidence: Evidence, encoder: Opened) -> Sequence[Score]:
        """Return 1 - cosine of pairs; see `judge.measures`."""
        from dreambooth_plugins.metric.judge.measures import cosine_distances, diversity

        return diversity(evidence, cosine_distances(encoder), encoder.label)
