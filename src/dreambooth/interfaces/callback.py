"""The callback slot: code that watches a run and may ask it to save or stop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dreambooth.component import Component
from dreambooth.component.door import Called

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreambooth.component import AnyJob
    from dreambooth.interfaces.context import Context

Event = Literal["start", "step", "log", "validate", "sample", "checkpoint", "end"]
"""In this order within a step: step, log, validate, sample, checkpoint. `start` comes once before
the first step of each process (`validate` then too, where the run begins), `end` once after the
last, before export."""


@dataclass(frozen=True)
class RunView:
    """What a callback sees: read-only."""

    job: AnyJob
    step: int
    """Optimizer steps done."""
    steps: int
    scalars: Mapping[str, float]
    """The newest logged numbers (`helpers.scalars.logged_at`: at which event one is new)."""
    folder: Path


@dataclass(frozen=True)
class Save:
    """Ask for a checkpoint after this step."""


@dataclass(frozen=True)
class Stop:
    """Ask the run to end here: a checkpoint is written and the result exported."""

    reason: str
    final: bool = False
    """True: the run has all it needs, and the same command again says so. False: it was cut
    short, and the same command goes on with it. A rule that ended a run for good must answer so
    again at `start` from its `state`, since the run may be killed before its export."""


class Observer(Called, ABC):
    """An opened callback."""

    @abstractmethod
    def on(self, event: Event, view: RunView) -> Save | Stop | None:
        """Look at the run after `event`; called on every process with the same view."""

    def state(self) -> dict[str, Any]:
        """Return JSON data to keep in the checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""


class Callback(Component):
    """A watcher of the run. Hook: `register_callbacks`. Order is the order of the job's list."""

    def open(self, ctx: Context) -> Observer:
        """Start watching."""
        raise NotImplementedError  # abstract
