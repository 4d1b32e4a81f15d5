"""The slot bases: what a plugin implements. None of these modules imports torch at run time."""

from dreambooth.component.model_info import (
    Density,
    FlowSpec,
    LatentSpec,
    ModelInfo,
    Prediction,
    Role,
    Usual,
)
from dreambooth.component.tensors import AdapterTensors, Conditioning, Latents, RowGeometry
from dreambooth.interfaces import answers as _answers  # noqa: F401 - hold plugins to these
from dreambooth.interfaces.callback import Callback, Event, Observer, RunView, Save, Stop
from dreambooth.interfaces.context import Chunks, Context, Progress
from dreambooth.interfaces.data import (
    AUTO,
    DataSource,
    Item,
    Rejected,
    Sample,
    Scan,
    Subject,
    unknown_placeholders,
    without_identifier,
)
from dreambooth.interfaces.exporter import Check, Exporter
from dreambooth.interfaces.freezing import (
    Artifact,
    ArtifactKind,
    FreezingPolicy,
    ParameterGroup,
    Stage,
)
from dreambooth.interfaces.loss import Loss, StepTensors
from dreambooth.interfaces.metric import (
    Drawing,
    Evaluation,
    Evidence,
    Finding,
    FindingRule,
    Metric,
    RunRecord,
    Score,
)
from dreambooth.interfaces.model import NEW_ROWS, LoadedModel, Model
from dreambooth.interfaces.optimizer import LARGE, LRSchedule, Optimizer
from dreambooth.interfaces.prior import NoPrior, Prior, PriorCost, PriorRow, PriorSet
from dreambooth.interfaces.safety import Action, SafetyChecker
from dreambooth.interfaces.sampler import Sampler
from dreambooth.interfaces.scheduler import Draw, NoiseSchedule, Scheduler
from dreambooth.interfaces.sidecars import Captioner, Masker
from dreambooth.interfaces.tracker import Histogram, Tracker, TrackerWriter
from dreambooth.interfaces.vocabulary import Vocabulary

__all__ = [
    "AUTO",
    "LARGE",
    "NEW_ROWS",
    "Action",
    "AdapterTensors",
    "Artifact",
    "ArtifactKind",
    "Callback",
    "Captioner",
    "Check",
    "Chunks",
    "Conditioning",
    "Context",
    "DataSource",
    "Density",
    "Draw",
    "Drawing",
    "Evaluation",
    "Event",
    "Evidence",
    "Exporter",
    "Finding",
    "FindingRule",
    "FlowSpec",
    "FreezingPolicy",
    "Histogram",
    "Item",
    "LRSchedule",
    "LatentSpec",
    "Latents",
    "LoadedModel",
    "Loss",
    "Masker",
    "Metric",
    "Model",
    "ModelInfo",
    "NoPrior",
    "NoiseSchedule",
    "Observer",
    "Optimizer",
    "ParameterGroup",
    "Prediction",
    "Prior",
    "PriorCost",
    "PriorRow",
    "PriorSet",
    "Progress",
    "Rejected",
    "Role",
    "RowGeometry",
    "RunRecord",
    "RunView",
    "SafetyChecker",
    "Sample",
    "Sampler",
    "Save",
    "Scan",
    "Scheduler",
    "Score",
    "Stage",
    "StepTensors",
    "Stop",
    "Subject",
    "Tracker",
    "TrackerWriter",
    "Usual",
    "Vocabulary",
    "unknown_placeholders",
    "without_identifier",
]
