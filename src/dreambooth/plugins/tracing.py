"""`dbt --trace`: which component answered what, and how long all its answers took."""

from __future__ import annotations

import atexit
import sys
from typing import Any

from dreambooth.component.door import Called, hear_calls


class Calls:
    """Counts calls by owner and method, and tells the first of each with its answer."""

    def __init__(self) -> None:
        self.spent: dict[tuple[str, str], tuple[int, float]] = {}

    def heard(self, owner: Called, method: str, answer: Any, seconds: float) -> None:
        """Take a call; of many alike the first one is shown."""
        key = (owned(owner), method)
        count, before = self.spent.get(key, (0, 0.0))
        self.spent[key] = (count + 1, before + seconds)
        if not count:
            from dreambooth.interfaces.answers.words import shown

            _say(f"{key[0]} {method}() -> {shown(answer)} in {seconds * 1000:.1f} ms")

    def lines(self) -> list[str]:
        """Return what took how long in all, the longest first; one call may be within another."""
        by_time = sorted(self.spent.items(), key=lambda entry: -entry[1][1])
        return [
            f"{seconds:9.3f} s in {count:6d} calls of {owner} {method}()"
            for (owner, method), (count, seconds) in by_time
        ]

    def told(self) -> None:
        """Say how long everything took."""
        for line in self.lines():
            _say(line)


def owned(owner: Called) -> str:
    """Return `my_pkg.plugin.Focal "focal"` of a component, and of what one opened the same and
    its class."""
    component: Any = getattr(owner, "opened_by", None) or owner
    cls = type(component)
    name = f"{cls.__module__}.{cls.__qualname__}"
    kind = f' "{component.kind}"' if hasattr(component, "kind") else ""
    return f"{name}{kind}{f' ({type(owner).__name__})' if component is not owner else ''}"


def trace_calls() -> Calls:
    """Begin to tell of calls on stderr, and how long they took when the program ends."""
    calls = Calls()
    hear_calls(calls.heard)
    atexit.register(calls.told)
    return calls


def _say(line: str) -> None:
    from dreambooth.helpers.text import printable, redacted

    print(printable(redacted(f"dreambooth plugins: {line}")), file=sys.stderr)
