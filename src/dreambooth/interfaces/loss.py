"""The loss slot: from predictions to one number a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dreambooth.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth.component.model_info import Prediction
    from dreambooth.interfaces.data import Subject


@dataclass(frozen=True)
class StepTensors:
    """What a loss may look at. B rows: instance rows first, then class rows; all float32."""

    pred: Tensor
    """[B, C, h, w], the trained network's prediction."""
    target: Tensor
    """[B, C, h, w], what it should have been (noise rows), or the reference (distilled rows)."""
    reference: Tensor | None
    """[B, C, h, w], the frozen base's prediction; 0 in rows that nobody asked it about, None where
    it was not asked at all."""
    t: Tensor
    """[B], timesteps."""
    snr: Tensor | None
    """[B], signal-to-noise ratio at t; None for flow models."""
    is_prior: Tensor
    """[B], bool: True for class rows."""
    weight: Tensor
    """[B], the row's own weight (1 unless the data says otherwise)."""
    mask: Tensor | None
    """[B, 1, h, w] in 0..1, where the subject is; None without masks."""
    prediction: Prediction
    snr_table: Tensor | None = None
    """[T] on the CPU, SNR of every timestep training draws (`NoiseSchedule.snr_table`)."""


class Loss(Component):
    """A training loss. Hook: `register_losses`.

    The engine divides: the sum over instance rows by their number in the *effective* batch, the
    sum over class rows by theirs, and adds the two. So a row's value needs no batch size, and
    batch 4 equals 2 x 2 accumulation.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """What the loss cannot do without, checked by validate: `reference` (the frozen base's
    prediction of every row), `class_reference` (of the class rows alone), `mask`, `class_rows`,
    `snr`, `trains_vae`."""

    def required(self) -> frozenset[str]:
        """Return `needs`, narrowed or widened by this instance's options."""
        return self.needs

    def reference_prompt(self, prompt: str, subject: Subject) -> str:
        """Return the prompt that the frozen base sees for an instance row; the default, the same.

        A function of its arguments alone: the text cache asks beforehand. Class rows say so
        themselves (`PriorRow.reference_prompt`).
        """
        return prompt

    def class_weight(self) -> float:
        """Return what class rows weigh against instance rows, to add their validation losses up.

        The default is the option `prior_weight`, and 1 where there is none.
        """
        return float(getattr(self, "prior_weight", 1.0))

    def rows(self, s: StepTensors) -> Tensor:
        """Return [B] float32: each row's loss, its weights (`s.weight`, prior weight) included."""
        raise NotImplementedError  # abstract
