"""`flow`: straight paths from pictures to noise, for models that predict a velocity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from dreambooth import Problem, Scheduler
from dreambooth.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dreambooth import Job
    from dreambooth.interfaces import ModelInfo, NoiseSchedule

Shift = Annotated[float, Field(gt=0.0, le=1000.0)]
Weighting = Literal["none", "sigma_sqrt", "cosmap"]


class Flow(Scheduler):
    """Flow matching (Lipman et al. 2023; Liu et al. 2023): z_s = (1 - s) x0 + s noise.

    The network learns noise - x0. Times s from 0 (a picture) to 1 (noise) are drawn anew for each
    row, by a density and then a shift; each row has its own generator.
    """

    kind: Literal["flow"] = "flow"
    density: Literal["auto", "uniform", "logit_normal", "mode"] = "auto"
    """How times are drawn before they are shifted (Esser et al. 2024): evenly; `logit_normal`,
    most of them in the middle; `mode`, evenly with a bulge there. `auto`: what is usual for the
    family."""
    logit_mean: float = Field(default=0.0, ge=-10.0, le=10.0)
    """Of `logit_normal`: above 0 more noise, below 0 more detail."""
    logit_std: float = Field(default=1.0, gt=0.0, le=10.0)
    """Of `logit_normal`: how far times spread from the middle."""
    mode_scale: float = Field(default=1.29, ge=-1.0, le=1.75)
    """Of `mode`: how large the bulge is; 0 is `uniform`."""
    shift: Literal["auto", "none"] | Shift = "auto"
    """Moves times towards noise, the more the higher: s becomes a s / (1 + (a - 1) s). `auto`: as
    the model's own schedule does, by one number or by the size of the pictures; `none` is 1."""
    weighting: Weighting = "none"
    """Weighs rows by their time: `sigma_sqrt` by 1 / s^2, `cosmap` by 2 / (pi (1 - 2 s + 2 s^2)),
    which is greatest in the middle."""

    @field_validator("shift", mode="before")
    @classmethod
    def _no_shift(cls, value: object) -> object:
        return "none" if value is None else value

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a model that predicts something else."""
        return () if info is None else tuple(self._problems(info))

    def open(self, info: ModelInfo) -> NoiseSchedule:
        """Build the schedule; `JobError` where `check` finds a problem."""
        from dreambooth_plugins.scheduler.flow_schedule import FlowSchedule, Times

        for problem in self._problems(info):
            raise JobError(f"{'.'.join(map(str, problem.at))}: {problem.message}", problem.hint)
        usual = info.flow.density if info.flow is not None else "logit_normal"
        density = usual if self.density == "auto" else self.density
        times = Times(density, self.logit_mean, self.logit_std, self.mode_scale)
        shift = None if self.shift == "auto" else 1.0 if self.shift == "none" else self.shift
        return FlowSchedule(info, times, shift=shift, weighting=self.weighting)

    def has_snr(self) -> bool:
        """Say that weights by the signal-to-noise ratio are not for flows."""
        return False

    def _problems(self, info: ModelInfo) -> Iterator[Problem]:
        if info.prediction != "flow":
            said = "epsilon" if info.prediction == "epsilon" else "v"
            yield Problem(
                ("scheduler",),
                f"flow is for models that predict a flow velocity; this one predicts {said}",
                "set scheduler: ddpm",
            )
        elif "FlowMatch" not in (name := str(info.schedule.get("_class_name", "FlowMatch"))):
            yield Problem(
                ("model",),
                f"its scheduler_config.json names a {name}, which is no schedule of flows",
                "take the scheduler folder from the published model",
            )
