"""`dco`: direct consistency optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dreambooth import Loss, Problem
from dreambooth.interfaces import without_identifier

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from dreambooth import Job
    from dreambooth.interfaces import ModelInfo, StepTensors, Subject


class DCO(Loss):
    """Learn the pictures only as far as the model gets better at them than the base is.

    Lee et al. 2024 (arXiv:2402.12004): -log sigmoid(-beta (MSE_model - MSE_base)), where both
    errors are of the same noisy latents and the base sees the prompt without the identifier. The
    gradient fades as the model's error falls below the base's by more than 1 / beta, so the model
    stays near the base and no class images are needed.
    """

    kind: Literal["dco"] = "dco"
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})
    beta: float = Field(default=1000.0, gt=0.0)
    """How closely the model is held to the base; more keeps it nearer."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Refuse class rows, which have no part in this loss."""
        if job.prior.has_rows():
            yield Problem(
                ("prior",),
                "loss kind dco keeps the class by comparing with the base: class rows would be "
                "paid for in every step and mean nothing",
                "set prior: none",
            )

    def reference_prompt(self, prompt: str, subject: Subject) -> str:
        """Return the prompt without the identifier."""
        return without_identifier(prompt, subject)

    def rows(self, s: StepTensors) -> Tensor:
        """Return [B] float32: -log sigmoid(-beta (MSE_model - MSE_base)), MSE over C, h, w."""
        from torch.nn import functional

        from dreambooth_plugins.loss.distances import row_distance

        assert s.reference is not None, "the engine brings what `needs` names"
        model = row_distance(s.pred, s.target, "mse", 1.0)
        base = row_distance(s.reference, s.target, "mse", 1.0)
        return s.weight * -functional.logsigmoid(-self.beta * (model - base))
