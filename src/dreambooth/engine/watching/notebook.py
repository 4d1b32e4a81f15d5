"""A run shown in a notebook: progress, the loss as a curve, the newest pictures, in one cell.

`dreambooth.run(job)` uses it by itself where it is called in a Jupyter kernel. It needs nothing but
IPython, which a notebook has; elsewhere it says the same in lines.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

EVERY = 0.5
"""Seconds between two updates of the cell; a browser has no use for more."""
WIDTH, HEIGHT = 480, 90
POINTS = 240
"""Points of the curve; of more, evenly spread ones are drawn."""


def in_notebook() -> bool:
    """Say whether this runs in a Jupyter kernel (neither a script nor a terminal's IPython)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class Notebook:
    """A reporter that keeps one output cell up to date; see `engine.reporting.Reporter`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.losses: list[tuple[int, float]] = []
        self.at, self.steps = 0, 0
        self.work = ""
        self.grid: Path | None = None
        self._shown: Any = None
        self._when = 0.0

    def info(self, message: str) -> None:
        """Show one line."""
        self.lines.append(message)
        self._show()

    def warn(self, message: str) -> None:
        """Show one line that deserves attention."""
        self.lines.append(f"warning: {message}")
        self._show()

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[_Work]:
        """Show progress of work that comes before or between training steps."""
        try:
            yield _Work(self, label, total)
        finally:
            self.work = ""
            self._show(at_once=False)

    @contextmanager
    def training(self, start: int, steps: int) -> Iterator[None]:
        """Show training from step `start` to `steps` while the block runs."""
        self.at, self.steps = start, steps
        try:
            yield
        finally:
            self._show()

    def step(self, step: int) -> None:
        """Show that a step is done."""
        self.at = step
        self._show(at_once=False)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add the loss of a logged step to the curve."""
        if "train/loss" in values:
            self.losses.append((step, float(values["train/loss"])))
        self._show(at_once=False)

    def pictures(self, step: int, grid: Path) -> None:
        """Show a new grid of samples in place of the last one."""
        self.grid = grid
        self._show()

    def html(self) -> str:
        """Return the cell as it stands; texts of strangers in it are escaped."""
        parts = ["<pre>" + "\n".join(map(escape, self.lines[-8:])) + "</pre>"]
        if self.steps:
            parts.append(f"<progress value={self.at} max={self.steps}></progress> ")
            parts.append(f"step {self.at} of {self.steps}")
        if self.work:
            parts.append(f"<div>{escape(self.work)}</div>")
        if len(self.losses) > 1:
            parts.append(curve(self.losses))
        if self.grid is not None and self.grid.is_file():
            parts.append(picture(self.grid))
        return "".join(parts)

    def _show(self, at_once: bool = True) -> None:
        now = time.monotonic()
        if not at_once and now - self._when < EVERY:
            return
        self._when = now
        if not in_notebook():
            if at_once and self.lines:
                print(self.lines.pop())
            return
        from IPython.display import HTML, display

        if self._shown is None:
            self._shown = display(HTML(self.html()), display_id=True)
        else:
            self._shown.update(HTML(self.html()))


class _Work:
    def __init__(self, notebook: Notebook, label: str, total: int) -> None:
        self._notebook, self._label, self._total, self._done = notebook, label, total, 0

    def advance(self, count: int = 1) -> None:
        """Say that `count` more are done."""
        self._done += count
        self._notebook.work = f"{self._label}: {self._done} of {self._total}"
        self._notebook._show(at_once=False)


def curve(points: list[tuple[int, float]]) -> str:
    """Return numbers over steps as a small SVG line, its lowest and highest value beside it.

    Values that are not finite are left out.
    """
    finite = [(x, y) for x, y in points if abs(y) < float("inf")]
    if len(finite) < 2:
        return ""
    finite = finite[:: max(1, len(finite) // POINTS)]
    (left, right), values = (finite[0][0], finite[-1][0]), [y for _, y in finite]
    low, high = min(values), max(values)
    wide, tall = max(1, right - left), (high - low) or 1.0
    line = " ".join(
        f"{(x - left) / wide * WIDTH:.1f},{HEIGHT - (y - low) / tall * HEIGHT:.1f}"
        for x, y in finite
    )
    return (
        f'<div><svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="loss">'
        f'<polyline points="{line}" fill="none" stroke="currentColor"/></svg> '
        f"loss {values[-1]:.4f} ({low:.4f} to {high:.4f})</div>"
    )


def picture(file: Path) -> str:
    """Return a PNG as an image within the page, so that the notebook keeps it."""
    from base64 import b64encode

    data = b64encode(file.read_bytes()).decode()
    return f'<div><img alt="samples" src="data:image/png;base64,{data}"></div>'
