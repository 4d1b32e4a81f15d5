"""What the default plugins use of the core is what the guide says is public."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins" / "dreambooth_plugins"
ALL = ("dreambooth", "dreambooth.interfaces")
"""Modules whose every name is public."""


def used() -> set[tuple[str, str]]:
    """Return (module, name) of all that the default plugins import from the core."""
    found = set()
    for path in PLUGINS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("dreambooth.") for alias in node.names), path
            elif isinstance(node, ast.ImportFrom) and node.module:
                package = node.module.split(".")[0]
                if package == "dreambooth":
                    found |= {(node.module, alias.name) for alias in node.names}
    return found


def listed() -> dict[str, set[str]]:
    """Return module -> names of the table in the guide."""
    guide = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    section = guide.split("## What is public")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|", section, re.MULTILINE)
    return {module: set(re.findall(r"`(\w+)`", what)) for module, what in rows}


def test_the_default_plugins_use_public_names_alone() -> None:
    public = listed()
    for module, name in sorted(used()):
        home = "dreambooth.interfaces" if module.startswith("dreambooth.interfaces.") else module
        if f"{module}.{name}" in public:
            continue  # a module itself
        assert home in public, f"{module}.{name} is not in the guide"
        assert home in ALL or name in public[home], f"{module}.{name} is not in the guide"


def test_the_guide_lists_nothing_that_is_not_there() -> None:
    for module, names in listed().items():
        there = import_module(module)
        assert all(hasattr(there, name) for name in names), module
