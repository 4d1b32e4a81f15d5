"""How a run is shown: live in a terminal, by lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dreambooth.cli.halfblocks import halfblocks
from dreambooth.printable import printable
from dreambooth.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rich.console import Console
    from rich.progress import TaskID

SPARKS = "▁▂▃▄▅▆▇█"
SHOWN_LOSSES = 24
SECONDS_BETWEEN_LINES = 5.0


def sparkline(values: list[float]) -> str:
    """Draw numbers as a line of bars, lowest to highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(SPARKS[int((v - low) / span * (len(SPARKS) - 1))] for v in values)


def duration(seconds: float) -> str:
    """Write seconds as `1 h 05 min`, `3 min 20 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def shown(message: str) -> str:
    """Return a message without secrets and without what would steer the terminal."""
    return printable(redacted(message))


class LineReporter:
    """One line at a time: for pipes, logs and CI."""

    stamped = True
    """Whether a line begins with the time of day: who reads it later wants to know."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._first = self._steps = 0

    def info(self, message: str) -> None:
        """Print one line."""
        self.console.print(
            self._stamp() + shown(message), markup=False, highlight=False, soft_wrap=True
        )

    def warn(self, message: str) -> None:
        """Print one warning."""
        text = f"{self._stamp()}warning: {shown(message)}"
        self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _stamp(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S  ") if self.stamped else ""

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[LineProgress]:
        """Print the label once, then how far it is every few seconds."""
        bar = LineProgress(self, label, total)
        yield bar
        bar.done()

    @contextmanager
    def training(self, start: int, steps: int) -> Iterator[None]:
        """Remember when training began, for the rate."""
        self._began, self._first, self._steps = time.monotonic(), start, steps
        yield

    def step(self, step: int) -> None:
        """Show nothing; logged steps are enough."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Print the numbers of a logged step."""
        if self._steps:
            self.info(f"step {step}/{self._steps}  {numbers(values)}  {self._rate(step)}")
        else:  # before training
            self.info(f"step {step}  {numbers(values)}")

    def _rate(self, step: int) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (step - self._first) / seconds
        left = duration((self._steps - step) / rate) if rate else "?"
        return f"{rate:.2f} steps/s  {left} left"

    def pictures(self, step: int, grid: Path) -> None:
        """Say where the pictures are."""
        self.info(f"samples: {grid}")


class LineProgress:
    """A progress bar for people who read lines."""

    def __init__(self, reporter: LineReporter, label: str, total: int) -> None:
        self._reporter, self._label, self._total = reporter, label, total
        self._count = 0
        self._began = self._said = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count up, and say so when enough time has passed."""
        self._count += count
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES and self._count < self._total:
            self._said = now
            left = (now - self._began) / self._count * (self._total - self._count)
            self._reporter.info(
                f"{self._label}: {self._count}/{self._total}  {duration(left)} left"
            )

    def done(self) -> None:
        """Say how long it took, where it took long."""
        took = time.monotonic() - self._began
        if took >= 1.0:
            self._reporter.info(f"{self._label}: {self._count}/{self._total} in {duration(took)}")


def numbers(values: Mapping[str, float]) -> str:
    """Write logged scalars in short: the part after the slash and four digits.

    What comes before the slash is said once, unless it goes without saying.
    """
    of = {name.split("/", 1)[0] for name in values if "/" in name} - {"train", "metric"}
    short = "  ".join(f"{name.split('/', 1)[-1]} {value:.4g}" for name, value in values.items())
    return f"{of.pop()}: {short}" if len(of) == 1 else short


class LiveReporter(LineReporter):
    """A live display in a terminal: bars, the loss as a sparkline, the newest pictures."""

    stamped = False

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._losses: list[float] = []

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[LineProgress]:
        """Show a bar; within training it appears below the training bar."""
        with self._display() as live:
            task = live.add_task(shown(label), total=total, note="")
            began = time.monotonic()
            try:
                yield _LiveBar(live, task)  # type: ignore[misc]
            finally:
                live.remove_task(task)
        took = time.monotonic() - began
        if took >= 2.0 and self._task is None:
            self.info(f"{label}: {total} in {duration(took)}")

    @contextmanager
    def training(self, start: int, steps: int) -> Iterator[None]:
        """Show the training bar while the block runs."""
        with super().training(start, steps), self._display() as live:
            self._task = live.add_task("Training", total=steps, completed=start, note="")
            try:
                yield
            finally:
                self._task = None

    @contextmanager
    def _display(self) -> Iterator[Progress]:
        if self._live is not None:
            yield self._live
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as live:
            self._live = live
            try:
                yield live
            finally:
                self._live = None

    def step(self, step: int) -> None:
        """Move the training bar."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show the loss as a sparkline with learning rate and speed."""
        if self._live is None or self._task is None or "train/loss" not in values:
            super().scalars(step, values)
            return
        self._losses = [*self._losses, values["train/loss"]][-SHOWN_LOSSES:]
        rate = self._rate(step).split("  ")[0]
        note = f"loss {values['train/loss']:.4f} {sparkline(self._losses)}  "
        note += f"lr {values.get('train/lr_effective', values['train/lr']):.2g}  {rate}"
        self._live.update(self._task, note=note)

    def pictures(self, step: int, grid: Path) -> None:
        """Show the newest grid as half-block characters, and where it lies."""
        self.console.print(halfblocks(grid, self.console.width, self.console.height // 2))
        self.info(f"samples at step {step}: {grid}")


class _LiveBar:
    def __init__(self, live: Progress, task: TaskID) -> None:
        self._live, self._task = live, task

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        self._live.advance(self._task, count)


def reporter_for(console: Console) -> LineReporter:
    """Return the live display for a terminal, lines for anything else."""
    return LiveReporter(console) if console.is_terminal else LineReporter(console)
