"""The numbers a run logged, as curves of bounded length with titles in plain words."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Literal

from dreambooth.files import open_regular
from dreambooth.helpers.text import flat
from dreambooth_plugins.report.document import MAX_CURVES, MAX_POINTS, Curve
from dreambooth_plugins.report.private import clipped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Group = Literal["check", "training", "measures", "more"]

TITLES: dict[str, tuple[str, Group]] = {
    "validation/loss": ("How far off its guesses are on the fixed check", "check"),
    "validation/loss_instance": ("The same, your pictures alone", "check"),
    "validation/loss_class": ("The same, class pictures alone", "check"),
    "train/loss": ("How far off its guesses are while it trains", "training"),
    "train/loss_instance": ("The same, your pictures alone", "training"),
    "train/loss_prior": ("The same, class pictures alone", "training"),
    "train/lr": ("Learning rate", "more"),
    "train/grad_norm": ("Size of its corrections", "more"),
    "speed": ("Steps a second", "more"),
}
MAX_LINES, MAX_LINE = 2_000_000, 65536


def thinned(
    steps: list[int], values: list[float], limit: int = MAX_POINTS
) -> tuple[list[int], list[float]]:
    """Return at most `limit` points: the lowest and highest of each of `limit` / 2 - 1 buckets.

    First and last stay, and so does every peak: the picture of the curve is that of all points.
    """
    count = len(steps)
    if count <= limit:
        return steps, values
    buckets = max(1, limit // 2 - 1)
    kept = {0, count - 1}
    for bucket in range(buckets):
        inside = range(bucket * count // buckets, (bucket + 1) * count // buckets)
        kept |= {min(inside, key=values.__getitem__), max(inside, key=values.__getitem__)}
    chosen = sorted(kept)
    return [steps[i] for i in chosen], [values[i] for i in chosen]


def smoothed(values: list[float], window: int) -> list[float]:
    """Return each value's mean with its neighbours, `window` (odd) of them at most.

    Near the ends the window shrinks on both sides alike, so that the line does not lean.
    """
    half, sums = window // 2, [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    last = len(values) - 1
    means = []
    for i in range(len(values)):
        reach = min(half, i, last - i)
        means.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return means


def window_of(count: int) -> int:
    """Return how many points the smoothed line averages: about a twentieth of them, odd."""
    return max(1, count // 20) | 1


def lines_of(path: Path) -> Iterator[dict[str, float]]:
    """Yield the objects of a JSON-lines file that hold a step, and pass over all other lines."""
    try:
        file = open_regular(path, follow=False)
    except OSError:
        return
    with file:
        for _ in range(MAX_LINES):
            line = file.readline(MAX_LINE)
            if not line:
                return
            try:
                data = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(data, dict) and _is_count(data.get("step")):
                yield data


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_number(value: object) -> bool:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and math.isfinite(float(value))  # type: ignore[arg-type]


def curves_of(folder: Path) -> tuple[list[Curve], int]:
    """Return a run's curves and its last logged step; a step logged twice counts as last logged."""
    points: dict[str, dict[int, float]] = {}
    for line in lines_of(folder / "metrics.jsonl"):
        for name, value in line.items():
            if name != "step" and _is_number(value):
                points.setdefault(name, {})[int(line["step"])] = float(value)
    for line in lines_of(folder / "timings.jsonl"):
        seconds, steps = line.get("seconds"), line.get("steps")
        if _is_number(seconds) and _is_number(steps) and seconds and seconds > 0 and steps:
            points.setdefault("speed", {})[int(line["step"])] = steps / seconds
    last = max((max(series) for series in points.values()), default=0)
    order = [*TITLES, *sorted(points.keys() - TITLES.keys())]
    return [_curve(n, points[n]) for n in order if n in points][:MAX_CURVES], last


def _curve(name: str, points: dict[int, float]) -> Curve:
    steps = sorted(points)
    kept, values = thinned(steps, [points[step] for step in steps])
    # A run has one line a logged step: five digits draw it, and make a page half as long.
    values = [float(f"{value:.5g}") for value in values]
    shown = clipped(flat(name), 80)
    if name in TITLES:
        return Curve(shown, *TITLES[name], kept, values, len(steps))
    group: Group = "measures" if name.startswith("metric/") else "more"
    if name.startswith("validation/"):
        group = "check"
    title = shown.partition("/")[2] or shown
    return Curve(shown, title.replace("_", " ").capitalize(), group, kept, values, len(steps))
