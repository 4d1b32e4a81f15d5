"""The slot bases: what a plugin implements. None of these modules imports torch at run time."""

from dreambooth.interfaces import answers as _answers  # noqa: F401 - hold plugins to these
from dreambooth.interfaces import tensor_answers as _tensor_answers  # noqa: F401
from dreambooth.interfaces.callback import Callback, Observer, RunView, Save, Stop
from dreambooth.interfaces.context import Chunks, Context, Progress
from dreambooth.interfaces.data import DataSource, Item, Rejected, Sample, Scan, Subject
from dreambooth.interfaces.exporter import Check, Exporter
from dreambooth.interfaces.freezing import Artifact, FreezingPolicy, ParameterGroup, Stage
from dreambooth.interfaces.loss import Loss, StepTensors
from dreambooth.interfaces.model import (
    Conditioning,
    Latents,
    LatentSpec,
    LoadedModel,
    Model,
    ModelInfo,
    RowGeometry,
)
from dreambooth.interfaces.optimizer import LRSchedule, Optimizer
from dreambooth.interfaces.prior import NoPrior, Prior, PriorCost, PriorRow, PriorSet
from dreambooth.interfaces.sampler import Sampler
from dreambooth.interfaces.scheduler import Draw, NoiseSchedule, Scheduler
from dreambooth.interfaces.tracker import Metric, Tracker, TrackerWriter
from dreambooth.interfaces.vocabulary import Vocabulary

__all__ = [
    "Artifact",
    "Callback",
    "Check",
    "Chunks",
    "Conditioning",
    "Context",
    "DataSource",
    "Draw",
    "Exporter",
    "FreezingPolicy",
    "Item",
    "LRSchedule",
    "LatentSpec",
    "Latents",
    "LoadedModel",
    "Loss",
    "Metric",
    "Model",
    "ModelInfo",
    "NoPrior",
    "NoiseSchedule",
    "Observer",
    "Optimizer",
    "ParameterGroup",
    "Prior",
    "PriorCost",
    "PriorRow",
    "PriorSet",
    "Progress",
    "Rejected",
    "RowGeometry",
    "RunView",
    "Sample",
    "Sampler",
    "Save",
    "Scan",
    "Scheduler",
    "Stage",
    "StepTensors",
    "Stop",
    "Subject",
    "Tracker",
    "TrackerWriter",
    "Vocabulary",
]
