"""DreamBooth training: typed jobs, an engine with hooks, and plugins.

    from dreambooth import Job, run

    run(Job(subject={"identifier": "ohwx", "class_noun": "dog"},
            data={"kind": "folder", "path": "pictures"}))

The public names below load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_WHERE = {
    "Job": "dreambooth.jobs.python",
    **dict.fromkeys(("validate", "plan", "run", "sample", "export", "evaluate"), "dreambooth.api"),
    "Notebook": "dreambooth.engine.watching.notebook",
    "RunResult": "dreambooth.runs.result",
    **dict.fromkeys(("hookimpl", "FileKind"), "dreambooth.hookspecs"),
    "Component": "dreambooth.component",
    "Problem": "dreambooth.component",
    **dict.fromkeys(("JobError", "RunError", "UserError"), "dreambooth.errors"),
    **dict.fromkeys(
        (
            "Callback", "Captioner", "DataSource", "Exporter", "FindingRule", "FreezingPolicy",
            "LRSchedule", "Loss", "Masker", "Metric", "Model", "Optimizer", "Prior",
            "SafetyChecker", "Sampler", "Scheduler", "Subject", "Tracker",
        ),
        "dreambooth.interfaces",
    ),
}  # fmt: skip

__all__ = [*_WHERE, "__version__"]  # noqa: PLE0604

if TYPE_CHECKING:
    from dreambooth.api import evaluate as evaluate
    from dreambooth.api import export as export
    from dreambooth.api import plan as plan
    from dreambooth.api import run as run
    from dreambooth.api import sample as sample
    from dreambooth.api import validate as validate
    from dreambooth.component import Component as Component
    from dreambooth.component import Problem as Problem
    from dreambooth.engine.watching.notebook import Notebook as Notebook
    from dreambooth.errors import JobError as JobError
    from dreambooth.errors import RunError as RunError
    from dreambooth.errors import UserError as UserError
    from dreambooth.hookspecs import FileKind as FileKind
    from dreambooth.hookspecs import hookimpl as hookimpl
    from dreambooth.interfaces import Callback as Callback
    from dreambooth.interfaces import Captioner as Captioner
    from dreambooth.interfaces import DataSource as DataSource
    from dreambooth.interfaces import Exporter as Exporter
    from dreambooth.interfaces import FindingRule as FindingRule
    from dreambooth.interfaces import FreezingPolicy as FreezingPolicy
    from dreambooth.interfaces import Loss as Loss
    from dreambooth.interfaces import LRSchedule as LRSchedule
    from dreambooth.interfaces import Masker as Masker
    from dreambooth.interfaces import Metric as Metric
    from dreambooth.interfaces import Model as Model
    from dreambooth.interfaces import Optimizer as Optimizer
    from dreambooth.interfaces import Prior as Prior
    from dreambooth.interfaces import SafetyChecker as SafetyChecker
    from dreambooth.interfaces import Sampler as Sampler
    from dreambooth.interfaces import Scheduler as Scheduler
    from dreambooth.interfaces import Subject as Subject
    from dreambooth.interfaces import Tracker as Tracker
    from dreambooth.jobs.python import Job as Job
    from dreambooth.runs.result import RunResult as RunResult


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
