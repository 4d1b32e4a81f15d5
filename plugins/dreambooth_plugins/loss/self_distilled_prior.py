"""`self_distilled_prior`: class rows are held to what the base predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dreambooth_plugins.loss.weighted import WeightedDistance

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth.interfaces import StepTensors


class SelfDistilledPrior(WeightedDistance):
    """The DreamBooth loss with the frozen base's own prediction as the target of class rows.

    Instance rows are trained as ever. A class row costs `prior_weight` times the distance of
    prediction and base prediction at the same noisy latents and timestep, which is 0 as long as
    the class prompt means what it meant. With `prior: mirror` no class image is needed at all.
    The base is the same weights with the adapter switched off, or a frozen copy
    (`freezing.reference`).
    """

    kind: Literal["self_distilled_prior"] = "self_distilled_prior"
    needs: ClassVar[frozenset[str]] = frozenset({"class_rows", "class_reference"})

    def rows(self, s: StepTensors) -> Tensor:
        """Return [B] float32: mean distance over C, h, w times the weights of each row."""
        import torch

        from dreambooth_plugins.loss.distances import row_distance

        assert s.reference is not None, "the engine brings what `needs` names"
        target = torch.where(s.is_prior.view(-1, 1, 1, 1), s.reference, s.target)
        return self.weigh(row_distance(s.pred, target, self.distance, self.huber_delta), s)
