"""`prior_preservation`: the DreamBooth loss."""

from __future__ import annotations

from typing import Literal

from dreambooth_plugins.loss.weighted import WeightedDistance


class PriorPreservation(WeightedDistance):
    """Mean distance of prediction and target, class rows weighted by `prior_weight`.

    Ruiz et al. 2023, equation 2. Without class rows (`prior: none`) it is the plain loss.
    """

    kind: Literal["prior_preservation"] = "prior_preservation"
