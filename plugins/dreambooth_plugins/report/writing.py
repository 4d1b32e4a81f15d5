"""Makes a page that keeps to its size: fewer pictures are taken until it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.errors import UserError
from dreambooth_plugins.report.gather import gather
from dreambooth_plugins.report.page import render

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth_plugins.report.document import Report

WORDS = 400_000
"""Bytes set aside at first for everything but the pictures."""
TRIES = 4


def made(runs: list[Path], limit: int) -> tuple[str, Report]:
    """Return a page of at most `limit` bytes and what it shows; `UserError` where none is so small.

    The page's words and curves are bounded by themselves: pictures give way.
    """
    room, length = max(0, limit - WORDS), 0
    for _ in range(TRIES):
        report = gather(runs, room)
        html = render(report)
        length = len(html.encode())
        if length <= limit:
            return html, report
        room = max(0, room - (length - limit) - 10_000)
    raise UserError(
        f"the page has {length / 1e6:.1f} MB even without pictures; {limit / 1e6:g} are allowed",
        "name fewer runs, or allow more with --size",
    )
