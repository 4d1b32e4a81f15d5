"""What the engine tells whoever watches; the command line shows it, tests collect it."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from dreambooth.helpers.text import printable, redacted
from dreambooth.process import newly_quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from dreambooth.interfaces import Progress

logger = logging.getLogger("dreambooth")
SECONDS_UNSHOWN = 2.0
"""Seconds after which work that is done again and again shows its progress."""


class Reporter(Protocol):
    """A watcher of a run."""

    def info(self, message: str) -> None:
        """Tell one line."""

    def warn(self, message: str) -> None:
        """Tell one line that deserves attention."""

    def progress(self, label: str, total: int) -> AbstractContextManager[Progress]:
        """Show progress over work that comes before or between training steps."""

    def training(self, start: int, steps: int) -> AbstractContextManager[None]:
        """Show training from step `start` to `steps` while the block runs."""

    def step(self, step: int) -> None:
        """Say that optimizer step number `step` is done, with all that came after it.

        0: what a fresh run looks at before its first step.
        """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show the numbers of a logged step."""

    def pictures(self, step: int, grid: Path) -> None:
        """Show a new grid of samples."""


class _Silent:
    def advance(self, count: int = 1) -> None:
        """Do nothing."""


@contextmanager
def late_progress(reporter: Reporter, label: str, total: int) -> Iterator[Progress]:
    """Show progress over `total` units once they have taken two seconds, and none before."""
    with ExitStack() as stack:
        yield _Late(lambda: stack.enter_context(reporter.progress(label, total)))


class _Late:
    def __init__(self, show: Callable[[], Progress]) -> None:
        self._show, self._began = show, time.monotonic()
        self._bar: Progress | None = None
        self._count = 0

    def advance(self, count: int = 1) -> None:
        """Count, and show what was counted once it takes long."""
        self._count += count
        if self._bar is None:
            if time.monotonic() - self._began < SECONDS_UNSHOWN:
                return
            self._bar, count = self._show(), self._count
        self._bar.advance(count)


class Quiet:
    """Reports to the `dreambooth` logger only: the default for `run(job)` from Python."""

    def info(self, message: str) -> None:
        """Log one line."""
        logger.info("%s", printable(redacted(message)))

    def warn(self, message: str) -> None:
        """Log one warning."""
        logger.warning("%s", printable(redacted(message)))

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        """Log the label; show no bar."""
        logger.info("%s (%d)", printable(label), total)
        yield _Silent()

    @contextmanager
    def training(self, start: int, steps: int) -> Iterator[None]:
        """Show nothing."""
        yield

    def step(self, step: int) -> None:
        """Show nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers."""
        logger.info("step %d: %s", step, dict(values))

    def pictures(self, step: int, grid: Path) -> None:
        """Log where the pictures are."""
        logger.info("step %d: samples in %s", step, printable(str(grid)))


class Logged:
    """Passes everything on to another reporter and keeps what is said in the run's `run.log`."""

    def __init__(self, inner: Reporter, path: Path) -> None:
        self._inner, self._path = inner, path
        self.progress = inner.progress
        self.training = inner.training
        self.step = inner.step

    def info(self, message: str) -> None:
        """Keep and pass on one line."""
        self._keep("info", message)
        self._inner.info(message)

    def warn(self, message: str) -> None:
        """Keep and pass on one warning."""
        self._keep("warning", message)
        self._inner.warn(message)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Pass the numbers on; `metrics.jsonl` keeps them."""
        self._inner.scalars(step, values)

    def pictures(self, step: int, grid: Path) -> None:
        """Keep where the pictures are, and pass them on."""
        self._keep("info", f"samples at step {step}: {grid}")
        self._inner.pictures(step, grid)

    def _keep(self, level: str, message: str) -> None:
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [(level, message), *(("warning", line) for line in newly_quiet())]
        with self._path.open("a", encoding="utf-8") as file:
            for kind, line in lines:
                # Further lines are indented: no name of a file can pass for a line of the log.
                text = printable(redacted(line)).replace("\n", "\n    ")
                file.write(f"{stamp} {kind} {text}\n")
