"""A page a slot: every method with its arguments, and the plugin that `dbt plugins new` writes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from dreambooth import interfaces
from dreambooth.plugins.classes import _interface, required_methods
from dreambooth.plugins.scaffold import Package
from dreambooth.plugins.slots import SLOTS, SlotInfo

GUIDE = Path(__file__).parents[3] / "plugins" / "guides" / "slots"
README = (GUIDE.parents[1] / "README.md").read_text(encoding="utf-8")
OPENED = {
    "model": ("LoadedModel", "Vocabulary"),
    "prior": ("PriorSet",),
    "scheduler": ("NoiseSchedule",),
    "tracker": ("TrackerWriter",),
    "callback": ("Observer",),
}
SLOT = pytest.mark.parametrize("slot", SLOTS.values(), ids=lambda slot: slot.name)


def written(function: Any) -> str:
    """Return `name(a, b, *, c)` as the guide writes it, without self."""
    parts: list[str] = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        parts.append(parameter.name)
    return f"{function.__name__}({', '.join(parts)})"


def page(slot: SlotInfo) -> str:
    return (GUIDE / f"{slot.name}.md").read_text(encoding="utf-8")


@SLOT
def test_every_method_is_on_the_page_with_its_arguments(slot: SlotInfo) -> None:
    text, required = page(slot), required_methods(slot.base)
    methods = [method for _, method in _interface(slot.base)]
    for name in OPENED.get(slot.name, ()):
        base = getattr(interfaces, name)
        assert f"### `{name}`" in text
        required += tuple(base.__abstractmethods__)
        methods += [f for n, f in vars(base).items() if inspect.isfunction(f) and n[0] != "_"]
    for method in methods:
        mark = " **(required)**" if method.__name__ in required else ""
        assert f"\n| `{written(method)}`{mark} | " in text, written(method)
    own = text.split("## A whole plugin")[0]
    listed = re.findall(r"^\| `(\w+)\(", own, flags=re.MULTILINE)
    assert set(listed) == {method.__name__ for method in methods}  # and nothing that is gone
    assert f"`{slot.hook}`" in text
    assert f"guides/slots/{slot.name}.md" in README


@SLOT
def test_the_plugin_on_the_page_is_what_a_new_one_begins_with(slot: SlotInfo) -> None:
    """Which the tests of the scaffold load, check, train with and install."""
    package = Package(f"my-{slot.name.replace('_', '-')}", slot.name)
    source, test, *_ = re.findall(r"```python\n(.*?)```", page(slot), flags=re.DOTALL)
    assert source == package.source()
    assert test == package.test()
    assert f"dbt plugins new {package.name} --slot {slot.name}" in page(slot)


def test_there_is_a_page_for_every_slot_and_for_nothing_else() -> None:
    assert {path.stem for path in GUIDE.glob("*")} == set(SLOTS)


def test_what_authors_missed_is_told_where_they_look() -> None:
    for name, words in {
        "freezing": ("`adapters[part]`", "`tokens`", "`exports: auto` takes", "`meta`", "average"),
        "model": ("`meta`", "Kept conditionings have the type"),
        "exporter": ("half precision", "the average"),
    }.items():
        for word in words:
            assert word in page(SLOTS[name]), (name, word)
