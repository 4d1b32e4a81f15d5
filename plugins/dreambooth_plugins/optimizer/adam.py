"""What the forms of AdamW have in common: their options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreambooth import Optimizer

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Implementation = Literal["auto", "fused", "foreach", "loop"]
BLOCK = 256
"""Numbers that share one scale where moments take a byte each."""


class AdamOptions(Optimizer):
    """Adam with decoupled weight decay. No kind of its own."""

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the mean square, so that tiny gradients do not blow up the step."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Share of the weights, times the learning rate, taken away at each step."""
