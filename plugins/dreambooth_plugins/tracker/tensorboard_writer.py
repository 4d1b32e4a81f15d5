"""Writes TensorBoard events, all lives of a run into one file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.summary_pb2 import Summary

from dreambooth.helpers.pictures import grid
from dreambooth.interfaces import TrackerWriter
from dreambooth_plugins.tracker import event_summaries
from dreambooth_plugins.tracker.event_file import EventFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from dreambooth.interfaces import Histogram


class TensorBoardWriter(TrackerWriter):
    """Turns what the engine logs into summaries. `pictures` is `grid`, `each` or `none`.

    Scalars are float32, as TensorBoard keeps them; `metrics.jsonl` has them in full.
    """

    def __init__(
        self, folder: Path, resume_step: int, pictures: str, *, histograms: bool = False
    ) -> None:
        self._resume_step = resume_step
        self._pictures, self._histograms = pictures, histograms
        self._file = EventFile(folder, resume_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one event with all numbers of the step."""
        self._write(step, [Summary.Value(tag=k, simple_value=v) for k, v in values.items()])

    def images(
        self, step: int, name: str, images: Sequence[Image], captions: Sequence[str]
    ) -> None:
        """Write the pictures as PNG under `name` (a grid) or `name/0`, ... and their captions."""
        if self._pictures == "none" or not images:
            return
        if self._pictures == "grid":
            values = [event_summaries.picture(name, grid(images, background="black"))]
        else:
            values = [
                event_summaries.picture(f"{name}/{i}", image) for i, image in enumerate(images)
            ]
        if captions:
            listed = "\n".join(f"{i}. {caption}" for i, caption in enumerate(captions, start=1))
            values.append(event_summaries.text(f"{name}/captions", listed))
        self._write(step, values)

    def text(self, name: str, text: str) -> None:
        """Write a text as it stands (TensorBoard would read it as Markdown)."""
        self._write(self._resume_step, [event_summaries.text(name, f"```\n{text}\n```")])

    def hyperparameters(self, name: str, job: Mapping[str, Any]) -> None:
        """Write a resolved job's options as a row of the dashboard HPARAMS."""
        self._write(0, [event_summaries.hyperparameters(name, job)])

    def wants_histograms(self) -> bool:
        """Say what the option `histograms` says."""
        return self._histograms

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """Write how numbers are spread."""
        self._write(step, [event_summaries.histogram(name, histogram)])

    def flush(self) -> None:
        """Bring the events to the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, step: int, values: list[Any]) -> None:
        self._file.add(step, time.time(), Summary(value=values))
