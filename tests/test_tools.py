"""Tests that drive programs say so, and what is not here is skipped, listed, or asked for."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import tools

ROOT = Path(__file__).parents[1]


def item(*marks):
    added = []
    return SimpleNamespace(
        get_closest_marker=lambda name: name if name in marks else None,
        add_marker=added.append,
        added=added,
    )


def opened(required):
    return tools.Tools(SimpleNamespace(getoption=lambda name: required))


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without any of the programs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(tools, "postgres", lambda: None)
    away = tools.Tool("PostgreSQL", lambda: None, "apt-get install postgresql")
    monkeypatch.setitem(tools.NEEDS, "postgresql", (away,))


def test_what_is_missing_is_skipped_and_listed(bare):
    plugin, plain, driven = opened(False), item(), item("browser")
    plugin.pytest_collection_modifyitems([plain, driven])
    assert plain.added == []
    assert "not found: Chromium" in driven.added[0].kwargs["reason"]
    written = []
    terminal = SimpleNamespace(section=written.append, write_line=written.append)
    plugin.pytest_terminal_summary(terminal)
    assert "not found: Chromium (apt-get install chromium, or CHROMIUM=path)" in written
    assert any("PostgreSQL" in line for line in written)


def test_where_tools_are_required_a_missing_one_fails_before_any_test(bare):
    with pytest.raises(pytest.UsageError, match="not found: Chromium"):
        opened(True).pytest_collection_modifyitems([item("browser")])
    # What no test that was asked for drives may be missing.
    opened(True).pytest_collection_modifyitems([item()])


def test_what_is_there_is_run(monkeypatch, tmp_path):
    program = tmp_path / "postgres"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    driven = item("postgresql")
    opened(True).pytest_collection_modifyitems([driven])
    assert driven.added == []
    assert tools.postgres() == str(program)


def test_no_test_starts_such_a_program_without_saying_so():
    """A file that names one of them in code has its marker."""
    words = {"node": "node|browser", "npx": "node|browser", "chromium": "browser",
             "postgres": "postgresql", "initdb": "postgresql"}  # fmt: skip
    mine = {"tools.py", "test_tools.py"}
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        called = {
            node.value
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        } & words.keys()
        for word in called if path.name not in mine else ():
            assert re.search(rf"mark\.({words[word]})\b", text), f"{path}: {word}"


def test_make_runs_exactly_these_markers():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [line] = [row for row in makefile.splitlines() if "--tools" in row]
    assert set(re.findall(r"\w+", line.split("-m")[-1])) - {"or"} == tools.NEEDS.keys()
