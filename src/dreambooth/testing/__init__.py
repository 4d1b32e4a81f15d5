"""Testing a plugin: a trainer in miniature, and a suite a slot that holds what the bases say.

    class TestMine(FreezingPolicyConformance):
        component = Mine()

Each test of a suite fails with words that say what to change. `pytest_plugins =
["dreambooth.testing.fixtures"]` in a `conftest.py` brings the fixtures `trainer` and `plugged`
for tests of your own. Needs pytest; torch is imported when a test runs.
"""

from dreambooth.testing.base import Conformance
from dreambooth.testing.command import CommandConformance
from dreambooth.testing.drawing import SamplerConformance, SchedulerConformance
from dreambooth.testing.family import FamilyConformance, check_family
from dreambooth.testing.inputs import DataSourceConformance, ModelConformance, PriorConformance
from dreambooth.testing.learning import (
    FreezingPolicyConformance,
    LossConformance,
    LRScheduleConformance,
    OptimizerConformance,
)
from dreambooth.testing.looking import (
    CaptionerConformance,
    MaskerConformance,
    SafetyConformance,
)
from dreambooth.testing.outputs import (
    CallbackConformance,
    ExporterConformance,
    FindingRuleConformance,
    MetricConformance,
    TrackerConformance,
)
from dreambooth.testing.trainer import Ran, Trainer, lay_pictures

__all__ = [
    "CallbackConformance",
    "CaptionerConformance",
    "CommandConformance",
    "Conformance",
    "DataSourceConformance",
    "ExporterConformance",
    "FamilyConformance",
    "FindingRuleConformance",
    "FreezingPolicyConformance",
    "LRScheduleConformance",
    "LossConformance",
    "MaskerConformance",
    "MetricConformance",
    "ModelConformance",
    "OptimizerConformance",
    "PriorConformance",
    "Ran",
    "SafetyConformance",
    "SamplerConformance",
    "SchedulerConformance",
    "TrackerConformance",
    "Trainer",
    "check_family",
    "lay_pictures",
]
