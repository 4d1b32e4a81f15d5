"""Which curves are drawn together, for the posters and for the page's script alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth_plugins.report.poster import Line
from dreambooth_plugins.report.series import TITLES

if TYPE_CHECKING:
    from dreambooth_plugins.report.document import Curve, Run


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes."""

    title: str
    folded: bool
    """Whether it is shown only when asked for."""
    lines: list[Line]
    logged: int
    """Points of the longest curve before thinning."""


def charts_of(runs: list[Run]) -> list[Chart]:
    """Return a page's charts: the fixed check first, then training, measures, and the rest."""
    if len(runs) > 1:
        return _of_several(runs)
    curves, charts = runs[0].curves, list[Chart]()
    for group, title in (
        ("check", TITLES["validation/loss"][0]),
        ("training", TITLES["train/loss"][0]),
    ):
        if found := [c for c in curves if c.group == group]:
            lines = [
                Line(_label(c), c.steps, c.values, i % 6) for i, c in enumerate(found) if c.steps
            ]
            charts.append(Chart(title, False, lines, max(c.logged for c in found)))
    for group in ("measures", "more"):
        for c in (c for c in curves if c.group == group):
            line = Line(c.title, c.steps, c.values, 0)
            charts.append(Chart(c.title, group == "more", [line], c.logged))
    return charts


def _label(curve: Curve) -> str:
    names = {"loss": "all together", "loss_instance": "your pictures"}
    names |= {"loss_prior": "class pictures", "loss_class": "class pictures"}
    last = curve.name.rpartition("/")[2]
    return names.get(last, curve.title)


def _of_several(runs: list[Run]) -> list[Chart]:
    names = dict.fromkeys(curve.name for run in runs for curve in run.curves)
    found: list[tuple[int, Chart]] = []
    for name in names:
        pairs = [(i, c) for i, run in enumerate(runs) for c in run.curves if c.name == name]
        first = pairs[0][1]
        lines = [Line(runs[i].name, c.steps, c.values, i % 6) for i, c in pairs]
        plain = name in {"validation/loss", "train/loss"} or first.group == "measures"
        title = first.title
        if title.startswith("The same"):
            start = TITLES["train/loss" if first.group == "training" else "validation/loss"][0]
            title = f"{start}:{title.removeprefix('The same,')}"
        place = ("check", "training", "measures", "more").index(first.group)
        found.append((place, Chart(title, not plain, lines, max(c.logged for _, c in pairs))))
    return [chart for _, chart in sorted(found, key=lambda pair: pair[0])]
