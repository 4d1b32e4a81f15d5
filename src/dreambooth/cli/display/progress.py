"""How a run is shown: live in a terminal, by lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dreambooth.cli.display.bars import SPARKS_SHOWN, Bars, Note
from dreambooth.cli.display.halfblocks import halfblocks
from dreambooth.cli.display.timeleft import Pause, TimeLeft
from dreambooth.console import say
from dreambooth.helpers.text import printable, redacted
from dreambooth.helpers.units import duration, shown_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 5.0
LINES_A_RUN = 20
"""Logged steps that stay in a terminal's scrollback; what is logged in between only passes by."""


def shown(message: str) -> str:
    """Return a message without secrets and without what would steer the terminal."""
    return printable(redacted(message))


class LineReporter:
    """One line at a time: for pipes, logs and CI."""

    stamped = True
    """Whether a line begins with the time of day: who reads it later wants to know."""

    def __init__(self, console: Console, pauses: Sequence[Pause] = ()) -> None:
        """`pauses` come between steps, and count in the time that is left."""
        self.console = console
        self._pauses = pauses
        self._steps = 0
        self._left = TimeLeft(0, 0)

    def info(self, message: str) -> None:
        """Print one line."""
        say(self.console, self._stamp() + shown(message), 2)

    def warn(self, message: str) -> None:
        """Print one warning."""
        say(self.console, f"{self._stamp()}warning: {shown(message)}", 2, style="yellow")

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
        """Remember when training began, for the speed."""
        self._steps, self._left = steps, TimeLeft(start, steps, self._pauses)
        yield

    def step(self, step: int) -> None:
        """Show nothing, logged steps are enough; but take the time."""
        self._left.ended(step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Print the numbers of a logged step."""
        self.info(self._logged(step, values))

    def _logged(self, step: int, values: Mapping[str, float]) -> str:
        if not self._steps:  # before training
            return f"step {step}  {numbers(values)}"
        parts = (f"step {step}/{self._steps}", numbers(values), self._rate(), self._left_text())
        return "  ".join(filter(None, parts))

    def _rate(self) -> str:
        seconds = self._left.step_seconds
        return f"{1 / seconds:.2f} steps/s" if seconds else ""

    def _left_text(self) -> str:
        seconds = self._left.seconds()
        return "" if seconds is None else f"{duration(seconds)} left"

    def pictures(self, step: int, grid: Path) -> None:
        """Say where the pictures are."""
        self.info(f"samples at step {step}: {shown_path(grid)}")


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
    """A live display in a terminal: bars, the loss as a sparkline, the newest pictures.

    What should outlive the run is printed above the bars and stays in the scrollback.
    """

    stamped = False

    def __init__(self, console: Console, pauses: Sequence[Pause] = ()) -> None:
        super().__init__(console, pauses)
        self._live: Bars | None = None
        self._task: TaskID | None = None
        self._note = Note()
        self._next_line = 0

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[LineProgress]:
        """Show a bar; within training it appears below the training bar."""
        with self._display() as live:
            task = live.add_task(shown(label), total=total)
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
            self._note, self._next_line = Note(left=self._left_text), start
            self._task = live.add_task("Training", total=steps, completed=start, note=self._note)
            try:
                yield
            finally:
                self._task = None

    @contextmanager
    def _display(self) -> Iterator[Bars]:
        if self._live is not None:
            yield self._live
            return
        with Bars(console=self.console, transient=True) as live:
            self._live = live
            try:
                yield live
            finally:
                self._live = None

    def step(self, step: int) -> None:
        """Move the training bar."""
        super().step(step)
        self._note = replace(self._note, rate=self._rate())
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=step, note=self._note)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show the loss beside the bar; now and then, and at the end, print a line that stays."""
        if self._live is None or self._task is None or "train/loss" not in values:
            super().scalars(step, values)
            return
        loss = values["train/loss"]
        self._note = replace(
            self._note,
            loss=f"loss {loss:.4f}",
            lr=f"lr {values.get('train/lr_effective', values['train/lr']):.2g}",
            losses=(*self._note.losses, loss)[-SPARKS_SHOWN:],
        )
        self._live.update(self._task, note=self._note)
        if step >= self._next_line or step == self._steps:
            self._next_line = step + max(1, self._steps // LINES_A_RUN)
            some = dict(values)
            while len(self._logged(step, some)) > self.console.width and len(some) > 1:
                some.popitem()  # one line: the loss comes first
            self.info(self._logged(step, some))

    def pictures(self, step: int, grid: Path) -> None:
        """Show the newest grid as half-block characters, and where it lies."""
        self.console.print(halfblocks(grid, self.console.width, self.console.height // 2))
        super().pictures(step, grid)


class _LiveBar:
    def __init__(self, live: Bars, task: TaskID) -> None:
        self._live, self._task = live, task

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        self._live.advance(self._task, count)


def reporter_for(console: Console, pauses: Sequence[Pause] = ()) -> LineReporter:
    """Return the live display for a terminal, lines for anything else."""
    return (LiveReporter if console.is_terminal else LineReporter)(console, pauses)
