"""What the losses on distances share: the distance, timestep weights, the weight of class rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dreambooth import Loss, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from dreambooth import Job
    from dreambooth.interfaces import ModelInfo, StepTensors


class WeightedDistance(Loss):
    """Distance of prediction and target, weighted by timestep and, for class rows, `prior_weight`.

    No kind of its own: a base for losses.
    """

    prior_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the class rows against the instance rows (lambda in the paper). More keeps the
    class better and learns the subject more slowly."""
    distance: Literal["mse", "huber", "l1"] = "mse"
    """Distance of prediction and target: squared, Huber (squared up to `huber_delta`, linear
    beyond: forgives outliers), or absolute."""
    huber_delta: float = Field(default=0.1, gt=0.0)
    """Where the Huber distance turns linear: d^2 / 2 up to it, delta (|d| - delta / 2) beyond."""
    min_snr_gamma: float | None = Field(default=None, gt=0.0)
    """Weigh timesteps by min(SNR, gamma), which stops nearly clean ones from dominating (Hang et
    al. 2023); 5 is usual, null weighs all alike. Applies to instance and class rows."""
    debiased: bool = False
    """Weigh timesteps by 1 / sqrt(SNR), noisy ones more than clean ones (Yu et al. 2023; for
    v-prediction by 1 / (SNR + 1)), scaled to a mean of 1 over the timesteps that are trained, so
    that the learning rate keeps its meaning. Instead of `min_snr_gamma`."""

    def required(self) -> frozenset[str]:
        """Need the signal-to-noise ratio where timesteps are weighted."""
        weighted = self.debiased or self.min_snr_gamma is not None
        return self.needs | {"snr"} if weighted else self.needs

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Report weights that contradict each other, the job or the model."""
        yield from self._prior_problems(job.prior.has_rows())
        options = {"min_snr_gamma": self.min_snr_gamma is not None, "debiased": self.debiased}
        weights = [name for name, is_set in options.items() if is_set]
        if len(weights) > 1:
            yield Problem(
                ("loss", "debiased"),
                "min_snr_gamma and debiased are two ways to weigh the same timesteps",
                "leave one of them out",
            )
        if weights and info is not None and info.prediction == "flow":
            yield Problem(
                ("loss", weights[0]),
                "a flow-matching model has no signal-to-noise ratio to weigh by",
                f"leave {weights[0]} out",
            )

    def rows(self, s: StepTensors) -> Tensor:
        """Return [B] float32: mean distance over C, h, w times the weights of each row."""
        from dreambooth_plugins.loss.distances import row_distance

        return self.weigh(row_distance(s.pred, s.target, self.distance, self.huber_delta), s)

    def weigh(self, loss: Tensor, s: StepTensors) -> Tensor:
        """Return [B] row losses times the weights of timestep, row and class."""
        from dreambooth_plugins.loss.distances import debiased_weight, min_snr_weight

        if self.debiased:
            loss = loss * debiased_weight(s.snr, s.snr_table, s.prediction)
        elif self.min_snr_gamma is not None:
            loss = loss * min_snr_weight(s.snr, self.min_snr_gamma, s.prediction)
        return loss * s.weight.where(~s.is_prior, s.weight * self.prior_weight)

    def _prior_problems(self, has_rows: bool) -> Iterator[Problem]:
        # A resolved job writes defaults out, so the default weight says nothing about intent.
        asked = "prior_weight" in self.model_fields_set and self.prior_weight != 1.0
        if has_rows and self.prior_weight == 0.0:
            yield Problem(
                ("loss", "prior_weight"),
                "class images are paid for in every step, and a weight of 0 ignores them",
                "set prior: none, or give prior_weight a value above 0",
            )
        elif asked and not has_rows:
            yield Problem(
                ("loss", "prior_weight"),
                "there are no class images to weigh",
                "leave prior_weight out, or use a prior with class images (prior: generated)",
            )
