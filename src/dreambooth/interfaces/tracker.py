"""The tracker slot: where numbers and pictures of a run go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth.component import Component
from dreambooth.component.door import Called

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

    from dreambooth.interfaces.context import Context


@dataclass(frozen=True)
class Histogram:
    """How often numbers lie where: `counts[i]` of them in [edges[i], edges[i + 1])."""

    edges: Sequence[float]
    """One more than `counts`; the last bucket has its right edge."""
    counts: Sequence[float]
    total: float
    """Sum of the numbers."""
    squares: float
    """Sum of their squares."""


class TrackerWriter(Called, ABC):
    """An opened tracker. Exists on the main process only.

    A tracker may fail (server away, disk full): the engine warns once and training goes on.
    """

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write named numbers of optimizer step `step` (`train/loss`, `train/lr`, ...)."""

    def images(
        self, step: int, name: str, images: Sequence[Image], captions: Sequence[str]
    ) -> None:
        """Write pictures drawn at `step`; the default keeps none."""

    def wants_histograms(self) -> bool:
        """Say whether `histogram` shall be called: counting takes time. Default: no."""
        return False

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """Write how numbers are spread at `step` (`weights/unet`); the default keeps none."""

    def text(self, name: str, text: str) -> None:
        """Write a text, such as the resolved job; the default keeps none."""

    def flush(self) -> None:
        """Bring what was written to disk: called before each checkpoint."""

    def close(self) -> None:
        """Finish; called once, also when the run failed."""


class Tracker(Component):
    """A place to write the run to. Hook: `register_trackers`."""

    def open(self, ctx: Context, resume_step: int) -> TrackerWriter:
        """Start writing, or go on: what lies beyond `resume_step` from an earlier life of the
        run is cut away, since those steps will be done again (0 for a fresh run)."""
        raise NotImplementedError  # abstract
