"""Progress bars of one line, whatever the terminal's width: what matters least gives way first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dreambooth.helpers.units import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import RenderableType
    from rich.progress import Task

SPARKS = "▁▂▃▄▅▆▇█"
FEW_SPARKS, SPARKS_SHOWN = 8, 24
SHORT_BAR, LONG_BAR = 8, 40
GAP = 2


@dataclass(frozen=True)
class Note:
    """What stands beside the training bar."""

    loss: str = ""
    rate: str = ""
    lr: str = ""
    losses: tuple[float, ...] = ()
    left: Callable[[], str] = str
    """Tells the time left whenever the line is drawn: it counts down during a pause too."""


def sparkline(values: Sequence[float]) -> str:
    """Draw numbers as a line of bars, lowest to highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(SPARKS[int((v - low) / span * (len(SPARKS) - 1))] for v in values)


@dataclass(frozen=True)
class Layout:
    """How a line of some width is shared out."""

    bar: int
    sparks: int
    shown: tuple[str, ...]


def fit(width: int, needed: Sequence[str], note: Note) -> Layout:
    """Share `width` columns out; what is needed is always there.

    In this order, as far as there is room: the loss, a short bar, the speed, a few losses as
    sparks, the learning rate, more sparks, a longer bar.
    """
    room = width - sum(len(text) + GAP for text in needed) + GAP
    shown: list[str] = []

    def take(text: str) -> None:
        nonlocal room
        if text and len(text) + GAP <= room:
            room -= len(text) + GAP
            shown.append(text)

    take(note.loss)
    bar = SHORT_BAR if room >= SHORT_BAR + GAP else 0
    room -= bar + GAP if bar else 0
    take(note.rate)
    count = len(note.losses)
    sparks = min(FEW_SPARKS, count) if room > FEW_SPARKS and note.loss in shown else 0
    room -= sparks + 1 if sparks else 0
    take(note.lr)
    more = min(SPARKS_SHOWN - sparks, count - sparks, room) if sparks else 0
    longer = min(LONG_BAR - bar, room - more) if bar else 0
    return Layout(bar + longer, sparks + more, tuple(shown))


class Bars(Progress):
    """One line a task: label, bar, count, the note of training, time left."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Lay each task out for the terminal as wide as it is now."""
        yield from (self._line(task) for task in self.tasks if task.visible)

    def _line(self, task: Task) -> Table:
        note: Note | None = task.fields.get("note")
        count = f"{task.completed:.0f}/{task.total or 0:.0f}"
        if note is None:
            left = f"{duration(task.time_remaining)} left" if task.time_remaining else ""
        else:
            left = note.left()
        needed = [text for text in (task.description, count, left) if text]
        # The last column stays free: some terminals go to a new line after it.
        layout = fit(self.console.width - 1, needed, note or Note())
        row: list[RenderableType] = [Text(task.description)]
        if layout.bar:
            row.append(ProgressBar(task.total, task.completed, width=layout.bar))
        row.append(Text(count))
        for text in layout.shown:
            losses = note.losses[-layout.sparks :] if note and layout.sparks else ()
            sparks = f" {sparkline(losses)}" if losses and note and text == note.loss else ""
            row.append(Text(text + sparks))
        row.append(Text(left))
        line = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        for _ in row:
            line.add_column(no_wrap=True)
        line.add_row(*row)
        return line
