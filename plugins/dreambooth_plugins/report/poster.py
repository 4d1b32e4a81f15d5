"""Curves as SVG written by hand: for print, for mail, and where no script runs.

Colours are classes (`c0` to `c5`), so that the page's styles can follow a dark theme.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from dreambooth_plugins.report.document import comparable
from dreambooth_plugins.report.series import smoothed, thinned, window_of
from dreambooth_plugins.report.verdict import FREEDOM, LIKENESS

if TYPE_CHECKING:
    from dreambooth_plugins.report.document import Evaluation, Measure, Run

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 240, 64, 16, 14, 34
MAX_POLYLINE = 600


@dataclass(frozen=True)
class Line:
    """One curve of a poster."""

    label: str
    steps: list[int]
    values: list[float]
    colour: int


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers, about `count` of them, from within low..high."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / count
    size = 10.0 ** floor(log10(rough))
    unit = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999)
    first = -floor(-low / unit + 1e-9)
    found = []
    while (value := first * unit) <= high + unit * 1e-6:
        found.append(0.0 if abs(value) < unit * 1e-9 else value)
        first += 1
    return found


class _Axes:
    """Maps values to places, and draws the frame."""

    def __init__(self, xs: list[float], ys: list[float], height: int = HEIGHT) -> None:
        self.height = height
        self.x0, self.x1 = min(xs), max(xs)
        self.y0, self.y1 = min(ys), max(ys)
        if self.x0 == self.x1:
            self.x0, self.x1 = self.x0 - 0.5, self.x1 + 0.5
        if self.y0 == self.y1:
            apart = abs(self.y0) * 0.1 or 0.5
            self.y0, self.y1 = self.y0 - apart, self.y1 + apart

    def x(self, value: float) -> float:
        return round(LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        room = self.height - TOP - BOTTOM
        return round(TOP + (self.y1 - value) / (self.y1 - self.y0) * room, 1)

    def frame(self, below: str, whole: bool = True) -> str:
        parts = []
        for value in ticks(self.y0, self.y1, 4):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
        for value in ticks(self.x0, self.x1, 6):
            if whole and value != int(value):
                continue
            x = self.x(value)
            y = self.height - BOTTOM + 16
            parts.append(f'<text x="{x}" y="{y}" text-anchor="middle">{value:g}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text class="axis" x="{middle}" y="{self.height - 3}" text-anchor="middle">'
            f"{escape(below)}</text>"
        )
        return "".join(parts)


def _svg(title: str, description: str, body: str, name: str, height: int = HEIGHT) -> Markup:
    return Markup(
        f'<svg class="poster" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>{body}</svg>'
    )


def poster(title: str, lines: list[Line], name: str) -> Markup:
    """Return curves over the steps as an SVG; values as logged are faint, their mean is bold.

    `name` is unique on the page. Each polyline has 600 points at most.
    """
    lines = [line for line in lines if line.steps]
    xs = [float(s) for line in lines for s in line.steps]
    axes = _Axes(xs, [v for line in lines for v in line.values])
    body = [axes.frame("step")]
    for line in lines:
        window = window_of(len(line.values))
        if window > 1:
            body.append(_polyline(axes, line.steps, line.values, f"raw c{line.colour}"))
        mean = smoothed(line.values, window)
        body.append(_polyline(axes, line.steps, mean, f"mean c{line.colour}"))
    return _svg(title, _told(lines), "".join(body), name)


def _polyline(axes: _Axes, steps: list[int], values: list[float], kind: str) -> str:
    xs, ys = thinned(steps, values, MAX_POLYLINE)
    if len(xs) == 1:
        return f'<circle class="{kind}" cx="{axes.x(xs[0])}" cy="{axes.y(ys[0])}" r="4"/>'
    points = " ".join(f"{axes.x(x):g},{axes.y(y):g}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def _told(lines: list[Line]) -> str:
    return " ".join(
        f"{line.label}: from {line.values[0]:.4g} at step {line.steps[0]} to "
        f"{line.values[-1]:.4g} at step {line.steps[-1]}; lowest {min(line.values):.4g}, "
        f"highest {max(line.values):.4g}."
        for line in lines
    )


def freedom_map(runs: list[Run]) -> Markup:
    """Return likeness against freedom as a path over the steps; empty where neither is measured.

    The shaded band begins where photographs are as close to each other, the dashed line is the
    untrained model. Bars are one standard error each way.
    """
    paths = [(i, _measured(run.evaluations)) for i, run in enumerate(runs)]
    paths = [(i, path) for i, path in paths if path]
    if not paths:
        return Markup()
    points = [(free, like) for _, path in paths for _, free, like in path]
    ceilings = [like.real for _, like in points if like.real is not None]
    floors = [like.baseline for _, like in points if like.baseline is not None]
    ys = [v for _, m in points for v in _ends(m)] + ceilings + floors
    xs = [v for m, _ in points for v in _ends(m)]
    pad_x, pad_y = (max(xs) - min(xs)) * 0.08 or 0.02, (max(ys) - min(ys)) * 0.1 or 0.02
    axes = _Axes(
        [min(xs) - pad_x, max(xs) + pad_x], [min(ys) - pad_y, max(ys) + pad_y], height := 340
    )
    body = [_band(axes, ceilings, floors)]
    body.append(axes.frame("does what the prompt says →", whole=False))
    body += [_path(axes, colour, path, len(points) > 10) for colour, path in paths]
    title = "Likeness (upwards) against doing what the prompt says (to the right)"
    told = " ".join(
        f"Step {step}: likeness {like.value:.3f}, prompt {free.value:.3f}."
        for _, path in paths
        for step, free, like in path
    )
    return _svg(title, told, "".join(body), "map", height)


Point = tuple[int, "Measure", "Measure"]


def _measured(evaluations: list[Evaluation]) -> list[Point]:
    found = []
    for e in comparable(evaluations):
        free, like = e.measure(FREEDOM), e.measure(LIKENESS)
        if free is not None and like is not None:
            found.append((e.step, free, like))
    return found


def _ends(m: Measure) -> tuple[float, float]:
    error = m.stderr or 0.0
    return m.value - error, m.value + error


def _band(axes: _Axes, ceilings: list[float], floors: list[float]) -> str:
    parts = []
    if ceilings:
        y, right = axes.y(ceilings[-1]), WIDTH - RIGHT
        parts.append(
            f'<rect class="band" x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{y - TOP:g}"/>'
            f'<text class="note" x="{LEFT + 6}" y="{TOP + 16}">photograph to photograph</text>'
        )
    if floors:
        y = axes.y(floors[-1])
        parts.append(
            f'<path class="floor" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
            f'<text class="note" x="{LEFT + 6}" y="{y - 6:g}">untrained</text>'
        )
    return "".join(parts)


def _path(axes: _Axes, colour: int, path: list[Point], many: bool) -> str:
    places = [(axes.x(free.value), axes.y(like.value)) for _, free, like in path]
    line = " ".join(f"{x:g},{y:g}" for x, y in places)
    parts = [f'<polyline class="mean c{colour}" points="{line}"/>']
    for (step, free, like), (x, y) in zip(path, places, strict=True):
        (l0, l1), (f0, f1) = _ends(like), _ends(free)
        said = f"step {step}: likeness {like.value:.3f}, prompt {free.value:.3f}"
        # Where there are many, only the ends are labelled: the others overlap.
        quiet = " quiet" if many and step not in (path[0][0], path[-1][0]) else ""
        parts.append(
            f'<g class="point c{colour}{quiet}" data-step="{step}" data-run="{colour}">'
            f"<title>{escape(said)}</title>"
            f'<path class="bar" d="M{x:g} {axes.y(l0):g}V{axes.y(l1):g}M{axes.x(f0):g} {y:g}'
            f'H{axes.x(f1):g}"/><circle cx="{x:g}" cy="{y:g}" r="6"/>'
            f'<text x="{x + 10:g}" y="{y - 8:g}">{step}</text></g>'
        )
    return "".join(parts)
