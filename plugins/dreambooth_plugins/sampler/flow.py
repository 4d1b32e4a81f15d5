"""`flow`: pictures of flow-matching models, guided the way their family is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator

from dreambooth import Problem, Sampler
from dreambooth_plugins.sampler.flow_guidance import FlowGuidance, SolverName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from torch import Tensor

    from dreambooth import Job
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo
    from dreambooth.interfaces.context import Progress

Time = Annotated[float, Field(ge=0.0, le=1.0)]
Scale = Literal["auto"] | Annotated[float, Field(ge=0.0)]
Way = Literal["auto", "true", "embedded", "none"]
OF_FAMILY: dict[str, Way] = {"cfg": "true", "embedded": "embedded", "none": "none"}


class FlowSampler(Sampler):
    """Follows the predicted velocity from noise to a picture, on the family's own table of times.

    Guidance is classifier-free (Ho & Salimans 2022), both halves in one forward; a number that the
    network takes as an input (Flux.1 dev); or none (models distilled to few steps).
    """

    kind: Literal["flow"] = "flow"
    guidance: Way = "auto"
    """How pictures are made to follow the prompt: `true` by two predictions a step, `embedded` by
    a number the network is given, `none`. `auto`: the family's way."""
    guidance_scale: Scale = "auto"
    """How strongly pictures follow the prompt; of `true` guidance 1 is none, at half the cost.
    `auto`: what is usual for the family."""
    embedded_scale: Scale = "auto"
    """What a network that takes guidance as an input is given while guidance is `true`. `auto`:
    what is usual for the family."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 28
    """Sampling steps."""
    solver: SolverName = "euler"
    """How steps are taken: `euler` as the families' own pipelines do; `dpmpp_2m` is second order,
    from the last two predictions: nearer to the exact solution at few steps, at the same cost."""
    rescale: float = Field(default=0.0, ge=0.0, le=1.0)
    """Brings the guided prediction's spread back to the conditional one's, in part (0 off, 1
    wholly): against overexposure."""
    interval: tuple[Time, Time] | None = None
    """Guide only at times s in (lo, hi], e.g. [0.2, 0.9]; outside, the prompt alone, at half the
    cost. Null guides always."""
    zero_star: bool = False
    """Scale the unguided half to fit the guided one, and stand still for the first 4 % of the steps
    (CFG-Zero*, Fan et al. 2025): fewer artefacts with `true` guidance."""
    negative: str = ""
    """What pictures should not show: the prompt of the other half."""

    @field_validator("interval")
    @classmethod
    def _not_empty(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"no time lies in ({value[0]}, {value[1]}]: lo must be below hi")
        return value

    def settled(self, describe: Callable[[], ModelInfo]) -> Self:
        """Return this sampler with the family's way and scale written out."""
        if "auto" not in (self.guidance, self.guidance_scale):
            return self
        return self._for(describe())

    def _for(self, info: ModelInfo) -> Self:
        way = OF_FAMILY[info.guidance] if self.guidance == "auto" else self.guidance
        scale = self.guidance_scale
        if scale == "auto":
            # True guidance of a network that is given a number as well is the person's choice.
            own = way == OF_FAMILY[info.guidance] and way != "none"
            scale = info.guidance_default if own else 1.0
        return self.model_copy(update={"guidance": way, "guidance_scale": scale})

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a model that predicts something else, or cannot be guided in this way."""
        return () if info is None else tuple(self._problems(info))

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

        `JobError` where the size does not suit the model, `RunError` where latents are not finite.
        """
        from dreambooth_plugins.sampler.flow_steps import sample

        return sample(
            model,
            prompts,
            guidance=self.guided(model.info),
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
        """Return the negative prompt, where there are two halves (or the family decides that)."""
        two = self.guidance == "auto" or (self.guidance == "true" and self.guidance_scale != 1.0)
        return [self.negative] if two else []

    def sampling_steps(self) -> int:
        """Return `steps`."""
        return self.steps

    def forwards(self, solver_config: Mapping[str, Any] | None = None) -> float:
        """Return the denoiser rows one picture costs: two a step that is guided, else one.

        An interval is counted on the schedule's table for one shift, where it is not by size.
        """
        if not self.extra_prompts():
            return float(self.steps)
        a = float((solver_config or {}).get("shift") or 1.0)
        times = [1.0 - i / self.steps for i in range(self.steps)]
        moved = [a * s / (1.0 + (a - 1.0) * s) for s in times]
        low, high = self.interval or (-1.0, 1.0)
        return float(sum(2 if low < s <= high else 1 for s in moved))

    def guided(self, info: ModelInfo) -> FlowGuidance:
        """Return how strongly, and when, predictions follow the prompt with a model."""
        here = self._for(info)
        scale = 1.0 if here.guidance_scale == "auto" else here.guidance_scale
        embedded: float | None = None
        if info.guidance == "embedded":
            given = self.embedded_scale
            usual = info.guidance_default if given == "auto" else given
            embedded = scale if here.guidance == "embedded" else usual
        return FlowGuidance(
            scale=scale if here.guidance == "true" else 1.0,
            embedded=embedded,
            rescale=self.rescale,
            interval=self.interval,
            zero_star=self.zero_star,
            renormalised=info.flow is not None and info.flow.renormalised,
        )

    def _problems(self, info: ModelInfo) -> Iterator[Problem]:
        if info.prediction != "flow":
            yield Problem(
                ("sampler",),
                "flow follows a velocity; this model predicts noise",
                "set sampler: cfg",
            )
            return
        at = ("sampler", "guidance")
        if self.guidance == "embedded" and info.guidance != "embedded":
            hint = "set guidance: auto, the family's own way"
            yield Problem(at, f"this model ({info.family}) takes no guidance as an input", hint)
        if self.guidance == "none" and info.guidance == "embedded":
            hint = "set guidance: embedded and a low guidance_scale, such as 1.0"
            yield Problem(at, f"this model ({info.family}) must be given a number", hint)
        if self.guidance == "true" and info.guidance != "cfg" and self.guidance_scale == "auto":
            hint = "set guidance_scale, or guidance: auto"
            yield Problem(at, f"nothing is usual for true guidance of {info.family}", hint)
        given = self.guidance_scale not in ("auto", 1.0)
        if info.guidance == "none" and self.guidance == "auto" and given:
            yield Problem(
                ("sampler", "guidance_scale"),
                f"this model ({info.family}) draws without guidance, so it has no effect",
                "leave it out, or set guidance: true",
            )
