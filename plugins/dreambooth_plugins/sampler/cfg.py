"""`cfg`: classifier-free guidance with the fast solvers of diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from dreambooth import Problem, Sampler
from dreambooth_plugins.sampler.steps import SOLVERS, STABLE_DIFFUSION, Guidance, SolverName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from dreambooth import Job
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo
    from dreambooth.interfaces.context import Progress

USUAL_SCALE = 7.5
"""Of Stable Diffusion 1.x and 2.x."""
Sigma = Annotated[float, Field(ge=0.0)]


class ClassifierFreeGuidance(Sampler):
    """Guidance e_u + s (e_c - e_u) (Ho & Salimans 2022), both halves in one forward."""

    kind: Literal["cfg"] = "cfg"
    guidance_scale: Literal["auto"] | Annotated[float, Field(ge=0.0)] = "auto"
    """How strongly pictures follow the prompt; 1 is no guidance, at half the cost. `auto`: what is
    usual for the family, 7.5 for Stable Diffusion 1.x and 2.x, 5 for SDXL."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Sampling steps."""
    solver: SolverName = "dpmpp_2m_karras"
    """How steps are taken. `dpmpp_2m_karras` is second order with small steps where detail is
    made: at 20 to 30 steps it is nearest to the exact solution, and it draws no noise of its own.
    `euler_a`, `ddpm` and the `sde` solvers add noise at each step and want more of them."""
    rescale: float = Field(default=0.0, ge=0.0, le=1.0)
    """Brings the guided prediction's spread back to the conditional one's, in part (0 off, 1
    wholly): against overexposure; about 0.7 with a zero-terminal-SNR schedule."""
    interval: tuple[Sigma, Sigma] | None = None
    """Guide only where sigma lies in (lo, hi], e.g. [0.28, 5.42]; outside, the prompt alone, at
    half the cost. Null guides always."""
    negative: str = ""
    """What pictures should not show: the prompt of the other half."""

    @field_validator("interval")
    @classmethod
    def _not_empty(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"no sigma lies in ({value[0]}, {value[1]}]: lo must be below hi")
        return value

    def settled(self, describe: Callable[[], ModelInfo]) -> Self:
        """Return this sampler with the family's guidance scale written out."""
        if self.guidance_scale != "auto":
            return self
        return self.model_copy(update={"guidance_scale": self.scale(describe())})

    def scale(self, info: ModelInfo | None = None) -> float:
        """Return the guidance scale for a model; without one that of Stable Diffusion."""
        if self.guidance_scale != "auto":
            return self.guidance_scale
        if info is not None and info.guidance != "cfg":
            return 1.0
        return USUAL_SCALE if info is None else info.guidance_default

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a solver or a number of steps that does not fit the model's schedule."""
        if info is not None:
            yield from self._problems(job, info)

    def sample(
        self,
        model: LoadedModel,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        size: tuple[int, int],
        solver_config: Mapping[str, Any],
        ctx: Context,
        negative: str | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Return latents [B, C, h, w], float32 on `ctx.device`; see `Sampler.sample`.

        `JobError` where the size does not suit the model or the solver does not know the
        schedule, `RunError` where latents are not finite.
        """
        from dreambooth_plugins.sampler.guidance import sample

        return sample(
            model,
            prompts,
            guidance=self.guidance(model.info),
            solver=self.solver,
            steps=self.steps,
            seeds=seeds,
            size=size,
            solver_config=solver_config,
            ctx=ctx,
            negative=self.negative if negative is None else negative,
            progress=progress,
        )

    def extra_prompts(self) -> list[str]:
        """Return the negative prompt, where there is guidance."""
        return [] if self.scale() == 1.0 else [self.negative]

    def sampling_steps(self) -> int:
        """Return `steps`."""
        return self.steps

    def forwards(self, solver_config: Mapping[str, Any] | None = None) -> float:
        """Return the denoiser rows one picture costs: two an evaluation that is guided, else one.

        Without a `solver_config` an interval is counted on Stable Diffusion's own schedule.
        """
        from dreambooth_plugins.sampler.guidance import evaluations

        at = evaluations(self.solver, self.steps, solver_config or STABLE_DIFFUSION)
        return float(sum(2 if self.guidance().at(sigma) else 1 for sigma in at))

    def guidance(self, info: ModelInfo | None = None) -> Guidance:
        """Return how strongly, and where, predictions of a model follow the prompt."""
        return Guidance(self.scale(info), self.rescale, self.interval)

    def _problems(self, job: Job, info: ModelInfo) -> Iterator[Problem]:
        if info.prediction == "flow":
            yield Problem(
                ("sampler",),
                "cfg solves epsilon and v models; this one predicts a flow velocity",
                "use a sampler for flow matching",
            )
            return
        if info.guidance != "cfg" and self.scale(info) != 1.0:
            given = "takes it as an input" if info.guidance == "embedded" else "has none"
            yield Problem(
                ("sampler", "guidance_scale"),
                f"cfg cannot guide this model ({info.family}), which {given}",
                "set guidance_scale: 1.0, or use a sampler that the family's plugin brings",
            )
        zero_snr = getattr(job.scheduler, "zero_terminal_snr", False)
        if not SOLVERS[self.solver].zero_snr and (
            zero_snr or info.schedule.get("rescale_betas_zero_snr")
        ):
            yield Problem(
                ("sampler", "solver"),
                f"{self.solver} cannot sample a zero-terminal-SNR schedule",
                "use dpmpp_2m_karras, unipc, euler or ddim",
            )
        total = info.schedule.get("num_train_timesteps", 1000)
        if self.steps >= total:
            yield Problem(
                ("sampler", "steps"),
                f"{self.steps} sampling steps, but the model has {total} timesteps",
                f"use fewer than {total}; 20 to 50 are usual",
            )
