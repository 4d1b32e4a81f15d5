"""Default metrics."""

from __future__ import annotations

from dreambooth import Metric, hookimpl
from dreambooth_plugins.metric.diversity import Diversity
from dreambooth_plugins.metric.judged import (
    Copying,
    Drift,
    PerceptualDiversity,
    PriorPreservation,
    PromptAlignment,
    SubjectSimilarity,
)


@hookimpl
def register_metrics() -> list[type[Metric]]:
    """Bring `diversity` of pixels, and what looks through an encoder."""
    return [
        Diversity,
        SubjectSimilarity,
        PromptAlignment,
        PriorPreservation,
        PerceptualDiversity,
        Drift,
        Copying,
    ]
