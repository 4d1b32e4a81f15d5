"""Trackers as the engine holds them: one that fails is dropped with a warning, training goes on."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from PIL import Image

from dreambooth.engine.watching.spreads import spread_by_part
from dreambooth.files import disk_is_full

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import TrackerWriter


class Trackers:
    """The job's trackers, on the main process."""

    def __init__(self, ctx: EngineContext, resume_step: int) -> None:
        self._ctx = ctx
        self._writers: dict[str, TrackerWriter] = {}
        for tracker in ctx.job.trackers if ctx.is_main else ():
            name = tracker.kind
            try:
                self._writers[name] = tracker.open(ctx, resume_step)
            except (Exception, SystemExit) as error:  # in whatever way it fails, the run goes on
                self._drop(name, error)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers everywhere."""
        self._each(lambda writer: writer.scalars(step, values))

    def images(
        self, step: int, name: str, images: Sequence[Image.Image], captions: Sequence[str]
    ) -> None:
        """Write pictures everywhere."""
        self._each(lambda writer: writer.images(step, name, images, captions))

    def sheet(self, step: int, name: str, path: Path, caption: str) -> None:
        """Write a picture that lies in a file everywhere."""
        with Image.open(path) as image:
            self.images(step, name, [image.convert("RGB")], [caption])

    def weights(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Write how trained weights are spread, by part, where somebody wants to know."""
        asking: list[TrackerWriter] = []
        self._each(lambda writer: asking.append(writer) if writer.wants_histograms() else None)
        spread = spread_by_part(parameters) if asking else {}

        def write(writer: TrackerWriter) -> None:
            for name, found in spread.items():
                if writer in asking:
                    writer.histogram(step, name, found)

        self._each(write)

    def text(self, name: str, text: str) -> None:
        """Write a text everywhere."""
        self._each(lambda writer: writer.text(name, text))

    def flush(self) -> None:
        """Bring everything to disk."""
        self._each(lambda writer: writer.flush())

    def close(self) -> None:
        """Finish all of them."""
        self._each(lambda writer: writer.close())

    def _each(self, call: Callable[[TrackerWriter], None]) -> None:
        for name, writer in list(self._writers.items()):
            try:
                call(writer)
            except (Exception, SystemExit) as error:  # in whatever way it fails, the run goes on
                if isinstance(error, OSError) and disk_is_full(error):
                    raise  # the next checkpoint would fail too
                self._writers.pop(name, None)
                self._drop(name, error)
                with suppress(Exception, SystemExit):  # only to let go of what it holds open
                    writer.close()

    def _drop(self, name: str, error: BaseException) -> None:
        self._ctx.warn(
            f'tracker "{name}" failed and is left out from here on: {type(error).__name__}: {error}'
        )
