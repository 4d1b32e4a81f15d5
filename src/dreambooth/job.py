"""A job: everything a run is, typed and strictly checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator

from dreambooth.component import JobPath, Section
from dreambooth.component.previews import Samples
from dreambooth.interfaces import (
    Callback,
    DataSource,
    Exporter,
    FindingRule,
    FreezingPolicy,
    Loss,
    LRSchedule,
    Metric,
    Model,
    Optimizer,
    Prior,
    SafetyChecker,
    Sampler,
    Scheduler,
    Subject,
    Tracker,
)
from dreambooth.plugins import Slot


def kind(name: str) -> Any:
    """Return a slot's default: the name of a kind, turned into a component when validated."""
    return Field(default=name)


def kinds(*names: str) -> Any:
    """Return the default of a list of slots."""
    return Field(default=list(names))


Steps = Annotated[int, Field(ge=1)]


class Ema(Section):
    """An exponential moving average of what trains."""

    decay: float = Field(default=0.999, gt=0.0, lt=1.0)
    """Decay a step once warm; early steps use (1 + k) / (10 + k) where that is smaller."""


class Train(Section):
    """How long, how much at once, how exactly."""

    steps: Steps = 400
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 1
    """Instance rows of one forward; class rows come on top, one an instance row."""
    accumulation: Annotated[int, Field(ge=1, le=65536)] = 1
    """Forwards whose gradients are summed before an optimizer step."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Compute precision of forward passes; what trains is float32 always. `auto`: bfloat16 on
    CUDA (float16 on cards without it), and on CPUs with bfloat16 units for pictures of 1,024
    latent cells and more (256 pixels a side for Stable Diffusion), denoisers of a few million
    parameters left out; float32 everywhere else. fp16 leaves out updates whose gradients
    overflow, and waits for the device once a step unless the optimizer is fused."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random draw of the run is a function of this."""
    max_grad_norm: float | None = Field(default=1.0, gt=0.0)
    """Clip the norm of all gradients together; null switches clipping off."""
    ema: Ema | None = None
    """Keep a moving average; previews and exports then use it."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite stops the run, or its step is skipped; either way
    the images and timesteps are named. Skipping costs a look at each step's gradient norm."""
    nonfinite_limit: Annotated[int, Field(ge=0)] = 10
    """How many steps in a row may be skipped before the run stops."""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """Threads that read and augment pictures ahead of the step where latents are not cached;
    0 reads them in between steps. Changes no number."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool | Literal["auto"] = False
    """Compile what a training step runs through with torch.compile: one to several minutes of
    waiting first. `auto` does so on CUDA, for denoisers of 100 million parameters and more, where
    20,000 rows of 4,096 latent cells (512 pixels a side for Stable Diffusion), or as much in
    others, are to come. A resumed run keeps what was decided; compiled and plain losses agree to
    rounding."""
    cache: bool = True
    """Keep VAE latents and text embeddings instead of computing them each step."""
    device: str = "auto"
    """`auto`, or a torch device such as `cpu` or `cuda:1`."""
    deterministic: bool = False
    """Equal to the bit on a GPU too: only algorithms that give the same bits each time (cuDNN's,
    cuBLAS's, attention's). Steps are slower, by a tenth or so, and an operation that has none
    ends the run and is named. A CPU needs no such option."""
    tf32: bool = False
    """Let NVIDIA cards multiply float32 with a mantissa of ten bits (TF32): steps in `fp32` are
    faster, and numbers agree to about 1e-3 alone. Half precision has no use for it."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads; null leaves torch's own choice. Part of what makes runs equal to the bit."""
    hang_timeout: Annotated[float, Field(gt=0.0)] | None = 1800.0
    """Seconds after which a run in which nothing moves any more ends and says where each process
    is; five minutes at least before the first step. Steps, parts of steps and whatever shows
    progress count; of several processes none may have moved. null waits for ever."""


class Validation(Section):
    """The loss on one fixed batch, which moves only when the weights do."""

    every: Annotated[int, Field(ge=0)] = 0
    """Evaluate every so many steps, before the first and after the last; 0 never does."""
    holdout: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0.0, lt=1.0)] = 0
    """Instance images that are never trained on, a number or a share of them: the batch is made
    of these. With 0 it is made of the images that train: its loss then shows when learning
    levels off, but not overfitting, which takes images the model has not seen."""
    rows: Annotated[int, Field(ge=1, le=4096)] = 16
    """Image and timestep pairs of the batch, timesteps spread evenly; as many class rows come on
    top where the prior has any."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    """Rows of one forward. Changes numbers in their last bits at most."""


class KeepBest(Section):
    """Which checkpoint counts as the best."""

    metric: str = Field(default="validation/loss", min_length=1)
    """Any logged number: validation/loss, metric/diversity, train/loss, ..."""
    mode: Literal["min", "max"] = "min"
    """Whether the lowest or the highest value is the best."""
    export: bool = True
    """Export the best step's weights (and draw `dbt sample` from them) instead of the last's."""


class Checkpoints(Section):
    """What a run resumes from, and which of them stay."""

    every: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Write a checkpoint every so many steps; one is always written at the end. `auto` goes by the
    clock: as often as costs at most 2 % of the time, and every 15 minutes at least."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """How many of the newest are kept."""
    keep_every: int | None = Field(default=None, ge=1)
    """Write one at every n-th step and keep those for good."""
    keep_best: KeepBest | None = None
    """Write one whenever a logged number is better than ever before, and keep the best besides
    the newest: `{}` for the validation loss. A run still goes on from the newest."""


class Exports(Section):
    """File formats of the result, and of steps on the way to it."""

    short_for: ClassVar[str] = "formats"
    formats: Literal["auto"] | list[Annotated[Exporter, Slot("exporter")]] = "auto"
    """File formats of the result; `auto`: what the freezing policy's artifact calls for."""
    every: Annotated[int, Field(ge=0)] = 0
    """Write them at every n-th step as well, as `exports/<format>-step-<n>`; 0 never does. They
    are compared with the live model at the end of the run alone, and by `dbt export --step`."""
    keep_last: int | None = Field(default=None, ge=1)
    """Of how many of the newest steps they stay; null keeps all."""


class Log(Section):
    """How often numbers are written."""

    every: Annotated[int, Field(ge=1)] = 10
    """Optimizer steps between two logged lines; the loss is averaged in between."""


class Job(Section):
    """A DreamBooth training job.

    `Job(...)` raises what `dbt validate` prints: a `JobError` with everything that is wrong, each
    with its place and the nearest known name.
    """

    version: Literal[1] = 1
    """Version of the job format."""
    name: str = Field(default="dreambooth", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the run: its folder below `output`."""
    output: JobPath = Path("runs")
    """Folder that holds runs."""
    model: Annotated[Model, Slot("model")] = kind("auto")
    """The pre-trained model."""
    subject: Subject
    """What is being learned."""
    data: Annotated[DataSource, Slot("data")]
    """The instance images."""
    prior: Annotated[Prior, Slot("prior")] = kind("generated")
    """How the class is kept while the subject is learned."""
    freezing: Annotated[FreezingPolicy, Slot("freezing")] = kind("components")
    """What trains and what stays frozen."""
    loss: Annotated[Loss, Slot("loss")] = kind("prior_preservation")
    """The training loss."""
    scheduler: Annotated[Scheduler, Slot("scheduler")] = kind("auto")
    """The noise scheduler of training."""
    sampler: Annotated[Sampler, Slot("sampler")] = kind("auto")
    """Draws class images, previews and final pictures."""
    optimizer: Annotated[Optimizer, Slot("optimizer")] = kind("adamw")
    """The optimizer."""
    lr_schedule: Annotated[LRSchedule, Slot("lr_schedule")] = kind("constant")
    """The learning-rate schedule."""
    train: Train = Train()
    """How long, how much at once, how exactly."""
    samples: Samples = Samples()
    """Pictures drawn before training and while it goes on."""
    safety: Annotated[SafetyChecker, Slot("safety")] | None = None
    """What looks at previews, and at what `dbt sample` draws, before they are written (`open_nsfw`,
    `compvis`); null: nothing. Pictures of the embedded base are never looked at."""
    validation: Validation = Validation()
    """The loss on one fixed batch."""
    early_stop: Annotated[Callback, Slot("callback")] | None = None
    """End the run when it has learned enough: `patience`, `dvar`, or another callback."""
    checkpoints: Checkpoints = Checkpoints()
    """What a run resumes from, and which of them stay."""
    log: Log = Log()
    """How often numbers are written."""
    trackers: list[Annotated[Tracker, Slot("tracker")]] = kinds("tensorboard", "jsonl")
    """Where numbers and pictures are written besides the run folder."""
    metrics: list[Annotated[Metric, Slot("metric")]] = Field(default_factory=list)
    """What is measured on each set of samples."""
    callbacks: list[Annotated[Callback, Slot("callback")]] = Field(default_factory=list)
    """Watchers of the run, called in this order."""
    findings: Literal["auto"] | list[Annotated[FindingRule, Slot("finding")]] = "auto"
    """Rules that say in words how the run went; `auto`: all that are installed."""
    exports: Literal["auto"] | list[Annotated[Exporter, Slot("exporter")]] | Exports = "auto"
    """File formats of the result; `auto`: what the freezing policy's artifact calls for. Or a
    mapping of `formats`, `every` and `keep_last`, to write them on the way as well."""

    if not TYPE_CHECKING:  # pydantic's own signature is the better one to check calls against

        def __init__(self, /, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                if Job.explained_by is None:
                    raise
                raise Job.explained_by(error, data) from None

        # Reading a file goes past this one, as it goes past pydantic's own.
        __init__.__pydantic_base_init__ = True

    explained_by: ClassVar[Callable[[ValidationError, dict[str, Any]], Exception] | None] = None
    """Makes words of what pydantic finds; the layer above brings it (`jobs.python`)."""

    @field_validator("output", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.absolute()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.output / self.name

    @property
    def exporting(self) -> Exports:
        """What is exported, and when, whichever way the job says it."""
        return self.exports if isinstance(self.exports, Exports) else Exports(formats=self.exports)

    def resolved(self) -> dict[str, Any]:
        """Return the whole job as plain data, defaults written out."""
        return self.model_dump(mode="json")
