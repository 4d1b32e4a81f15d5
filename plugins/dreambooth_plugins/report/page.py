"""A report as one HTML file: no network, no other file, nothing in it that others could run.

Jinja writes every word, table and poster, so the page reads where no script runs. The script
(`static/page.js`, built from `plugins/report_page`) is named in the page's content security policy
by its hash: no other script runs in it, whatever a prompt or a file's name holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import RunError
from dreambooth_plugins.report.charts import charts_of
from dreambooth_plugins.report.compare import differences, verdicts
from dreambooth_plugins.report.document import comparable
from dreambooth_plugins.report.inputs import title_of
from dreambooth_plugins.report.pictures.strip import spread
from dreambooth_plugins.report.poster import freedom_map, poster

if TYPE_CHECKING:
    from jinja2 import Environment

    from dreambooth_plugins.report.charts import Chart
    from dreambooth_plugins.report.document import Report, Run

STATIC = Path(__file__).parent / "static"
FIRST_ROWS = 4
"""Prompts whose pictures stand in the page itself; the rest waits in a JSON block."""
TABLE_ROWS, TABLE_COLUMNS = 40, 10


@cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise RunError(
            "the report needs Jinja2, which is not installed",
            "pip install 'dreambooth-trainer[report]'",
        ) from error
    return Environment(
        loader=FileSystemLoader(STATIC),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def in_script(value: Any) -> str:
    """Return plain data as JSON that ends no script block and is no markup, whatever it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


class _Pictures:
    """Hands pictures to the template, and keeps account of those that stand in it already."""

    def __init__(self, pool: dict[str, bytes]) -> None:
        self._pool = pool
        self._used: set[str] = set()

    def here(self, name: str) -> str:
        """Return a picture as an address that holds it."""
        self._used.add(name)
        return f"data:image/webp;base64,{_text(self._pool[name])}"

    def rest(self) -> str:
        """Return those that were not handed out, as JSON."""
        waiting = {name: _text(d) for name, d in self._pool.items() if name not in self._used}
        return in_script(waiting)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def source_hash(text: str) -> str:
    """Return what a content security policy calls an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def render(report: Report) -> str:
    """Return the page."""
    from markupsafe import Markup

    script = (STATIC / "page.js").read_text(encoding="utf-8")
    style = (STATIC / "page.css").read_text(encoding="utf-8")
    charts = charts_of(report.runs)
    several = len(report.runs) > 1
    judged, unjudged = verdicts(report.runs) if several else ([], [])
    pictures = _Pictures(report.pool)
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            runs=report.runs,
            several=several,
            title=_title(report.runs),
            quoted=shlex.quote,
            charts=[(i, chart, _drawn(chart, i)) for i, chart in enumerate(charts)],
            map=freedom_map(report.runs),
            differences=differences(report.runs) if several else [],
            verdicts=judged,
            unjudged=unjudged,
            measures=[measures_of(run) for run in report.runs],
            table=_table(charts),
            first_rows=FIRST_ROWS,
            pictures=pictures,
            data=lambda: Markup(in_script(_data(report.runs, charts))),
            rest=lambda: Markup(pictures.rest()),
            script=Markup(script),
            style=Markup(style),
            policy="default-src 'none'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
            f"style-src {source_hash(style)}; script-src {source_hash(script)}",
        )
    )


def _title(runs: list[Run]) -> str:
    if len(runs) > 1:
        return "Comparing " + ", ".join(run.name for run in runs)
    return f"{runs[0].subject}: {runs[0].name}"


def _drawn(chart: Chart, i: int) -> Any:
    return poster(chart.title, chart.lines, f"chart{i}")


def measures_of(run: Run) -> dict[str, Any]:
    """Return a run's measures as a table: a row a step, the untrained and the real ones around.

    Reference rows are the last evaluation's; where it has none they are left out.
    """
    names = list(dict.fromkeys(m.name for e in run.evaluations for m in e.measures))
    if not names:
        return {"heads": [], "rows": []}
    last = [comparable(run.evaluations)[-1].measure(name) for name in names]
    rows = [("Untrained", False, [_figure(m.baseline if m else None) for m in last])]
    for e in run.evaluations:
        found = [e.measure(name) for name in names]
        cells = [_figure(m.value, m.stderr) if m else "" for m in found]
        drawn = f", {len(e.pictures)} drawn for it, {e.encoder}" if e.asked else ""
        rows.append((f"Step {e.step}{drawn}", e.step == run.best and not drawn, cells))
    rows.append(
        ("Photographs among themselves", False, [_figure(m.real if m else None) for m in last])
    )
    counts = {m.n for e in run.evaluations for m in e.measures if m.n}
    return {
        "heads": [title_of(name) for name in names],
        "rows": [row for row in rows if any(row[2])],
        "encoders": list(dict.fromkeys(e.encoder for e in run.evaluations)),
        "pictures": " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else "",
    }


def _figure(value: float | None, error: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _table(charts: list[Chart]) -> dict[str, Any]:
    """Return some of the numbers as a table: the script offers all of them."""
    lines = [(chart, line) for chart in charts for line in chart.lines][:TABLE_COLUMNS]
    values = [dict(zip(line.steps, line.values, strict=True)) for _, line in lines]
    steps = sorted({step for some in values for step in some})
    return {
        "heads": [
            chart.title if line.label == chart.title else f"{chart.title} ({line.label})"
            for chart, line in lines
        ],
        "rows": [
            (step, [f"{some[step]:.4g}" if step in some else "" for some in values])
            for step in spread(steps, TABLE_ROWS)
        ],
        "steps": len(steps),
    }


def _data(runs: list[Run], charts: list[Chart]) -> dict[str, Any]:
    """Return what the script works with; names of pictures, not the pictures."""
    return {
        "version": 1,
        "runs": [
            {
                "name": run.name,
                "best": run.best,
                "samples": asdict(run.samples),
                "photos": [asdict(photo) for photo in run.photos],
                "values": [
                    {"step": e.step, "key": p.key, "seed": p.seed, "values": p.values}
                    for e in comparable(run.evaluations)
                    for p in e.pictures
                ][:2000],
            }
            for run in runs
        ],
        "charts": [asdict(chart) for chart in charts],
        "evaluations": [
            {"run": run.name, "step": e.step, "drawn": e.asked, "encoder": e.encoder, **asdict(m)}
            for run in runs
            for e in run.evaluations
            for m in e.measures
        ],
    }
