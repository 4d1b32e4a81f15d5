"""`masked`: the loss looks at the subject, and little at what is around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dreambooth_plugins.loss.weighted import WeightedDistance

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth.interfaces import StepTensors


class Masked(WeightedDistance):
    """The DreamBooth loss, each latent cell weighted by how much of the subject is in it.

    Weights are floor + (1 - floor) mask, and a row is the weighted mean over its cells, so a small
    subject counts as much as a large one. Backgrounds the pictures have in common are then not
    learned with the subject. Needs masks from the data source (`data.mask`); class rows and
    pictures without a mask count as a whole.
    """

    kind: Literal["masked"] = "masked"
    needs: ClassVar[frozenset[str]] = frozenset({"mask"})
    floor: float = Field(default=0.1, ge=0.0, le=1.0)
    """Weight of the background against the subject's 1: 0 ignores it (the model then paints
    anything there), 1 is the loss without masks."""

    def rows(self, s: StepTensors) -> Tensor:
        """Return [B] float32: weighted mean distance over C, h, w times the weights of each row."""
        from dreambooth_plugins.loss.distances import row_distance

        cells = None if s.mask is None else self.floor + (1.0 - self.floor) * s.mask
        loss = row_distance(s.pred, s.target, self.distance, self.huber_delta, cells)
        return self.weigh(loss, s)
