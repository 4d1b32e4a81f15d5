"""Prodigy: its options."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dreambooth import Optimizer, Problem
from dreambooth.errors import RunError, UserError
from dreambooth.interfaces.optimizer import LARGE
from dreambooth_plugins.common.extras import importing, missing
from dreambooth_plugins.optimizer.adam import Beta

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.optim import Optimizer as TorchOptimizer

    from dreambooth import Job
    from dreambooth.component import Location
    from dreambooth.interfaces import ModelInfo

LOWEST, HIGHEST = 0.1, 10.0
"""Learning rates that are a correction of the one Prodigy finds; others are meant for AdamW."""


class Prodigy(Optimizer):
    """Adam that finds its own learning rate (Mishchenko and Defazio, arXiv:2306.06101).

    At step k, for gradient g at weights x_k, with the estimate d (from d0, never falling):
    `m = b1 m + (1 - b1) d g`;  `v = b2 v + (1 - b2) d^2 g^2`;
    `r = sqrt(b2) r + lr d^2 <g, x_0 - x_k>`;  `s = sqrt(b2) s + lr d^2 g`;
    `d_next = max(d, d_coef r / |s|_1)`;  `x -= lr d m / (sqrt(v) + d eps)`.
    r and |s|_1 run over everything that trains: there is one d, so one learning rate.

    From prodigyopt (`pip install 'dreambooth-trainer[prodigy]'`): any device. The defaults differ
    from the library's where its authors say so for diffusion models. State is 16 bytes a
    parameter (`adamw`: 8); `train/lr_effective` logs lr times d.
    """

    kind: Literal["prodigy"] = "prodigy"
    lr: float = Field(default=1.0, gt=0.0)
    """What the learning rate it finds is multiplied by: leave it at 1 and tune `d_coef`."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added, times d, to the root of the mean square."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Share of the weights, times lr and d, taken away at each step."""
    d0: float = Field(default=1e-6, gt=0.0)
    """The estimate to begin with; 1e-5 or 1e-4 where it never leaves the ground."""
    d_coef: float = Field(default=1.0, gt=0.0)
    """Factor of the estimate: 0.5 for a lower learning rate, 2 for a higher one."""
    growth_rate: float | None = Field(default=None, gt=1.0)
    """At most this factor a step may the estimate grow once it has left d0, 1.02 for a slow start;
    null: no limit."""
    safeguard_warmup: bool = True
    """Keep the schedule's factor out of s, so that a warm-up does not make d too large."""
    use_bias_correction: bool = True
    """Correct the means for having begun at zero, as Adam does."""
    slice_p: int = Field(default=1, ge=1)
    """Estimate from every n-th number of a tensor: the state shrinks to 8 + 8 / n bytes a
    parameter, and the estimate is no longer exact."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Report a missing library, rates Prodigy cannot use, and a warm-up it misreads."""
        yield from missing("prodigyopt", "prodigy", ("optimizer", "kind"))
        yield from self._rate(("optimizer", "lr"), self.lr)
        yield from self._rates_of_parts(job, info)
        if job.lr_schedule.warmup_steps and not self.safeguard_warmup:
            yield Problem(
                ("optimizer", "safeguard_warmup"),
                "during a warm-up of the learning rate Prodigy takes the small steps for a sign "
                "of distance and overestimates d",
                "set safeguard_warmup: true, or lr_schedule.warmup_steps: 0",
            )
        if job.lr_schedule.warmup_steps and getattr(job.freezing, "start", None):
            yield Problem(
                ("lr_schedule", "warmup_steps"),
                "a part that starts later has a warm-up of its own, and Prodigy has one learning "
                "rate for all",
                "leave warmup_steps out: Prodigy finds its rate from small steps anyway",
            )

    def _rate(self, at: Location, lr: float) -> Iterator[Problem]:
        if not LOWEST <= lr <= HIGHEST:
            yield Problem(
                at,
                f"Prodigy finds the learning rate itself and multiplies it by lr: {lr:g} is far "
                "from 1",
                "leave lr out; d_coef: 0.5 makes the rate it finds lower, 2 higher",
            )

    def _rates_of_parts(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        own = getattr(job.freezing, "lr", None)
        if not isinstance(own, dict) or not own or info is None:
            return
        try:
            rates = {part: own.get(part, self.lr) for part in job.freezing.trained_parts(info)}
        except UserError:  # names of no part are the policy's own to report
            return
        for part in rates.keys() & own.keys():
            yield from self._rate(("freezing", "lr", part), rates[part])
        if len(set(rates.values())) > 1:
            yield Problem(
                ("freezing", "lr"), f"Prodigy has one learning rate for all: {rates}", ONE_RATE
            )

    def build(self, groups: list[dict[str, Any]]) -> TorchOptimizer:
        """Build prodigyopt's `Prodigy`; `RunError` for groups of different learning rates.

        State a parameter: `step` (a number), `exp_avg` (m), `exp_avg_sq` (v), `s` and `p0`
        (x_0; one zero where the tensor began as zeros), flat. d, r and the count of steps are
        numbers of the parameter groups. On a GPU each step reads two numbers a tensor back.
        """
        rates = {group.get("lr", self.lr) for group in groups}
        if len(rates) > 1:
            raise RunError(
                f"Prodigy has one learning rate for all that trains, not {sorted(rates)}", ONE_RATE
            )
        with importing("prodigy", "optimizer"):
            from dreambooth_plugins.optimizer.prodigy_state import open_prodigy
        options = self.model_dump(exclude={"kind"})
        return open_prodigy(groups, **{**options, "growth_rate": self.growth_rate or math.inf})

    def state_bytes(self, size: int = LARGE) -> float:
        """m (unless its beta is 0), v, and of s and x_0 the share that `slice_p` takes."""
        return (8.0 if self.betas[0] else 4.0) + 8.0 / min(self.slice_p, size)

    def scalars(self, optimizer: TorchOptimizer) -> Mapping[str, float]:
        """Log the learning rate that is in effect: lr, with the schedule's factor, times d."""
        group = optimizer.param_groups[0]
        return {"train/lr_effective": float(group["lr"] * group["d"])}


ONE_RATE = "take freezing.lr out, or use optimizer: adamw"
