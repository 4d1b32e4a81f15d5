"""Programs that some tests drive: those that are here run, those that are not are listed.

A test says what it drives by a marker (`browser`, `node`, `postgresql`). `make test` runs what it
finds and ends with the list of what it did not find; `make test-tools` runs these tests alone, and
fails where one is missing. Nothing here installs anything.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PAGE = Path(__file__).parents[1] / "plugins" / "report_page"
MODULES = PAGE / "node_modules"


def chromium() -> str | None:
    """Return Chromium: `CHROMIUM`, else the one on the path."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


def postgres() -> str | None:
    """Return PostgreSQL's server: on the path, else where Debian keeps the newest."""
    kept = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)
    return shutil.which("postgres") or next(map(str, kept), None)


@dataclass(frozen=True)
class Tool:
    """A program or package that tests need."""

    name: str
    found: Callable[[], object]
    get: str
    """How a person gets it."""


NODE = Tool("Node", lambda: shutil.which("node"), "https://nodejs.org, or apt-get install nodejs")
PACKAGES = Tool(
    "the page's npm packages", MODULES.is_dir, "npm ci in plugins/report_page (they are locked)"
)
DRIVER = Tool(
    "playwright-core", (MODULES / "playwright-core").is_dir, "npm ci in plugins/report_page"
)
BROWSER = Tool("Chromium", chromium, "apt-get install chromium, or CHROMIUM=path")
POSTGRES = Tool("PostgreSQL", postgres, "apt-get install postgresql")
NEEDS = {"browser": (BROWSER, NODE, DRIVER), "node": (NODE, PACKAGES), "postgresql": (POSTGRES,)}
"""Marker -> what its tests drive."""


def missing(marker: str) -> list[Tool]:
    """Return what a marker's tests lack here."""
    return [tool for tool in NEEDS[marker] if not tool.found()]


class Tools:
    """The plugin of pytest that skips what cannot run, and says so at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._required = bool(config.getoption("--tools"))
        self._used: set[str] = set()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Skip tests whose tool is missing; fail all at once where tools are required."""
        for item in items:
            for marker in NEEDS:
                if item.get_closest_marker(marker) is not None:
                    self._used.add(marker)
                    if lacks := missing(marker):
                        why = f"not found: {', '.join(tool.name for tool in lacks)}"
                        item.add_marker(pytest.mark.skip(reason=why))
        if self._required and (lines := self.lines(self._used)):
            raise pytest.UsageError("--tools: " + "; ".join(lines))

    def lines(self, markers: Iterable[str] = NEEDS) -> list[str]:
        """Return a line a tool that was not found."""
        lacks = {tool.name: tool for marker in sorted(markers) for tool in missing(marker)}
        return [f"not found: {tool.name} ({tool.get})" for tool in lacks.values()]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """End with the list."""
        lines = self.lines()
        if lines:
            terminalreporter.section("what these tests did not find, and so did not try")
        for line in lines:
            terminalreporter.write_line(line)
