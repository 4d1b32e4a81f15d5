"""The metrics of an evaluation, all through one encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth_plugins.metric.judge.names import find
from dreambooth_plugins.metric.judged import (
    Copying,
    Drift,
    PerceptualDiversity,
    PriorPreservation,
    PromptAlignment,
    SubjectSimilarity,
)

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth import Job
    from dreambooth.interfaces import Metric


def default_metrics(job: Job, encoder: str, lpips: Path | None = None) -> list[Metric]:
    """Return what a run is measured by; `JobError` where the encoder is not there.

    An encoder that reads no text leaves prompt alignment out.
    """
    found = find(encoder, job)
    metrics: list[Metric] = [SubjectSimilarity(encoder=encoder)]
    if found.reads_text:
        metrics.append(PromptAlignment(encoder=encoder))
    return [
        *metrics,
        PriorPreservation(encoder=encoder),
        PerceptualDiversity(encoder=encoder, lpips=lpips),
        Drift(encoder=encoder),
        Copying(encoder=encoder),
    ]
