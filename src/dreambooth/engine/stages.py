"""Stages of a run: what learns at which step, and when texts may be kept instead of encoded."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dreambooth.engine.data import text
from dreambooth.interfaces.model import NEW_ROWS
from dreambooth.plugins.faults import refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.nn import Parameter

    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import FreezingPolicy, LoadedModel, Stage


def stages_of(policy: FreezingPolicy, names: Sequence[str], steps: int) -> list[Stage]:
    """Return a policy's stages, held to the contract: in order, up to the last step, all names."""
    stages = policy.stages(names, steps)
    ends = [stage.until for stage in stages]
    unknown = {name for stage in stages for name in stage.names} - set(names)
    idle = set(names) - {name for stage in stages for name in stage.names}
    fault = ""
    if not stages or ends != sorted(set(ends)) or ends[-1] < steps:
        fault = f"its stages end at {ends}; they must rise and reach step {steps}"
    elif unknown or idle:
        what = "is in no stage" if idle else "is in a stage but does not train"
        fault = f"{min(idle or unknown)!r} {what}"
    elif empty := [stage.until for stage in stages if not stage.names]:
        fault = f"nothing trains in the stage that ends at step {empty[0]}"
    if fault:
        raise refused(policy, "stages", fault)
    return stages


def first_steps(stages: Sequence[Stage]) -> dict[str, int]:
    """Return the optimizer step (from 0) in which each name first trains."""
    first: dict[str, int] = {}
    begin = 0
    for stage in stages:
        first |= dict.fromkeys(stage.names - first.keys(), begin)
        begin = stage.until
    return first


def describe(stages: Sequence[Stage]) -> list[str]:
    """Return a line a stage (`steps 1 to 120: text_encoder, unet`); nothing for a single one."""
    if len(stages) < 2:
        return []
    begins = [0, *(stage.until for stage in stages)]
    return [
        f"steps {begin + 1} to {stage.until}: {', '.join(learners(stage))}"
        for begin, stage in zip(begins, stages, strict=False)
    ]


def notes(ctx: EngineContext, model: LoadedModel, names: Sequence[str]) -> list[str]:
    """Return what there is to say of the policy in this model: its own notes, then its stages."""
    job = ctx.job
    stages = stages_of(job.freezing, names, job.train.steps)
    return [*job.freezing.notes(model, ctx), *describe(stages)]


def learners(stage: Stage) -> list[str]:
    """Return what a person is told: `token` for new rows of an embedding table, else the part."""
    return sorted({"token" if n.endswith(NEW_ROWS) else n.split(".", 1)[0] for n in stage.names})


def parts(stage: Stage) -> list[str]:
    """Return the parts in which something trains, sorted."""
    return sorted({name.split(".", 1)[0] for name in stage.names})


class Stages:
    """Brings the model into the stage of each step: gradients, modes, kept texts.

    A function of the step and the weights, so nothing of it is saved: a resumed run enters the
    stage it stopped in, and encodes the same prompts one by one with the same weights.
    """

    def __init__(
        self,
        ctx: EngineContext,
        model: LoadedModel,
        parameters: Mapping[str, Parameter],
        prompts: Sequence[str],
    ) -> None:
        self._ctx, self._model, self._parameters = ctx, model, parameters
        self._prompts = prompts
        self._stages = stages_of(ctx.job.freezing, list(parameters), ctx.job.train.steps)
        self._texts = set(model.info.part_names("text_encoders"))
        self._trains_text = text.trains_text(model, parameters)
        self._entered: Stage | None = None

    def at(self, step: int) -> Stage:
        """Return the stage of the optimizer step that follows `step` done ones."""
        return next((stage for stage in self._stages if step < stage.until), self._stages[-1])

    def enter(self, step: int) -> None:
        """Make ready for the optimizer step that follows `step` done ones."""
        stage = self.at(step)
        if stage is self._entered or len(self._stages) == 1:
            return
        if self._entered is not None:
            self._ctx.reporter.info(f"from step {step + 1} on: {', '.join(learners(stage))}")
        self._entered = stage
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in stage.names)
            parameter.grad = None
        learning = set(parts(stage))
        for part in sorted({name.split(".", 1)[0] for name in self._parameters}):
            self._model.parts[part].train(part in learning)
        if self._trains_text:
            self._keep_texts(bool(learning & self._texts))

    def _keep_texts(self, learning: bool) -> None:
        model = self._model
        model.embeddings.clear()
        model.text_is_frozen = not learning and self._ctx.job.train.cache
        if model.text_is_frozen:
            model.embeddings |= text.encode_each(self._ctx, model, self._prompts)

    @contextmanager
    def without_kept_texts(self) -> Iterator[None]:
        """Encode texts anew within the block: it shows other weights than those that trained."""
        model = self._model
        if not (self._trains_text and model.text_is_frozen):
            yield
            return
        kept, model.embeddings, model.text_is_frozen = model.embeddings, {}, False
        try:
            yield
        finally:
            model.embeddings, model.text_is_frozen = kept, True
