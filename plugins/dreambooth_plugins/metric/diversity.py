"""Diversity of samples: its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth import Metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

    from dreambooth.interfaces import Context


class Diversity(Metric):
    """How far apart the pictures of one prompt are: falls towards 0 when a model collapses.

    With n pictures x_1..x_n of a prompt, pixels scaled to 0..1, the score of the prompt is
    `2 / (n (n - 1)) * sum over i < j of sqrt(mean((x_i - x_j)^2))`, in 0..1. It needs no other
    network and says nothing about likeness: read it as a warning of overfitting, not as a score
    to push up.
    """

    kind: Literal["diversity"] = "diversity"

    def score(
        self, samples: Mapping[str, Sequence[Image]], instances: Sequence[Image], ctx: Context
    ) -> Mapping[str, float]:
        """Return `diversity/<i>` for the i-th prompt (from 0) and their mean, `diversity`.

        A prompt with fewer than two pictures has no score; with none left, nothing is returned.
        Raises `RunError` where the pictures of one prompt differ in size.
        """
        from dreambooth_plugins.metric.pairwise import mean_pairwise_rms

        scores = {
            f"diversity/{i}": mean_pairwise_rms(pictures)
            for i, pictures in enumerate(samples.values())
            if len(pictures) > 1
        }
        if not scores:
            return {}
        return {"diversity": sum(scores.values()) / len(scores), **scores}
