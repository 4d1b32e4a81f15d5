"""`ddpm`: the discrete variance-preserving schedule Stable Diffusion was trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from dreambooth import Problem, Scheduler
from dreambooth.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dreambooth import Job
    from dreambooth.interfaces import ModelInfo, NoiseSchedule

Timestep = Annotated[int, Field(ge=0)]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

BETA_DEFAULTS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
}
"""What diffusers takes where a `scheduler_config.json` leaves a key out."""


class DDPM(Scheduler):
    """Noise as in DDPM (Ho et al. 2020), with the betas of the model's own schedule.

    For models that predict epsilon or v. Timesteps are uniform; each row has its own generator.
    """

    kind: Literal["ddpm"] = "ddpm"
    timestep_range: tuple[Timestep, Timestep] | None = None
    """Train on timesteps [lo, hi) alone, e.g. [0, 1000]; null trains on all. Low timesteps are
    fine detail, high ones composition."""
    offset_noise: float = Field(default=0.0, ge=0.0)
    """Adds this much of a constant per image and channel to the noise, so that very dark and very
    bright pictures can be learned; 0.05 to 0.1 is usual."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last timestep is pure noise (v-prediction models alone).
    Sampling then uses trailing timesteps; set `sampler.rescale` to about 0.7. False leaves the
    model's schedule as it is."""

    @field_validator("timestep_range")
    @classmethod
    def _not_empty(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"no timestep lies in [{value[0]}, {value[1]}): lo must be below hi")
        return value

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a model this schedule cannot train, and ranges beyond its timesteps."""
        return () if info is None else tuple(self._problems(info))

    def open(self, info: ModelInfo) -> NoiseSchedule:
        """Build the schedule; `JobError` where `check` finds a problem."""
        from dreambooth_plugins.scheduler.ddpm_schedule import DiscreteSchedule

        for problem in self._problems(info):
            raise JobError(f"{'.'.join(map(str, problem.at))}: {problem.message}", problem.hint)
        return DiscreteSchedule(
            {**BETA_DEFAULTS, **info.schedule},
            prediction=info.prediction,
            timestep_range=self.timestep_range,
            offset_noise=self.offset_noise,
            zero_terminal_snr=self.has_zero_terminal_snr(info),
        )

    def has_zero_terminal_snr(self, info: ModelInfo) -> bool:
        """Say whether the last timestep is pure noise, by option or by the model's own schedule."""
        return self.zero_terminal_snr or bool(info.schedule.get("rescale_betas_zero_snr"))

    def _problems(self, info: ModelInfo) -> Iterator[Problem]:
        schedule = {**BETA_DEFAULTS, **info.schedule}
        if info.prediction == "flow":
            yield Problem(
                ("scheduler",),
                "ddpm is for models that predict epsilon or v; this one predicts a flow velocity",
                "use a flow-matching scheduler",
            )
            return
        if schedule["trained_betas"] is None and schedule["beta_schedule"] not in BETA_SCHEDULES:
            yield Problem(
                ("scheduler",),
                f'ddpm does not know the model\'s beta schedule "{schedule["beta_schedule"]}"',
                f"it knows {', '.join(BETA_SCHEDULES)}, and a list under trained_betas",
            )
        yield from self._terminal_problems(info)
        betas = schedule["trained_betas"]
        count = len(betas) if betas is not None else schedule["num_train_timesteps"]
        if self.timestep_range is not None and self.timestep_range[1] > count:
            yield Problem(
                ("scheduler", "timestep_range"),
                f"the model has {count} timesteps; the range ends at {self.timestep_range[1]}",
                f"end it at {count} or below",
            )

    def _terminal_problems(self, info: ModelInfo) -> Iterator[Problem]:
        if info.prediction != "epsilon":
            return
        if self.zero_terminal_snr:
            yield Problem(
                ("scheduler", "zero_terminal_snr"),
                "this model predicts epsilon, which says nothing about the picture at pure noise",
                "set zero_terminal_snr: false, or use a v-prediction model",
            )
        elif self.has_zero_terminal_snr(info):
            yield Problem(
                ("model",),
                "its scheduler_config.json has rescale_betas_zero_snr, but the model predicts "
                "epsilon, which says nothing about the picture at pure noise",
                "correct prediction_type or rescale_betas_zero_snr in that file",
            )
