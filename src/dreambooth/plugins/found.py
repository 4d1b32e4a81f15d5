"""What is installed: entry points found and named, nothing of them loaded yet.

Light on purpose: `dbt --help` looks for commands with it, and needs neither pydantic nor the slots.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

from dreambooth.errors import PluginError
from dreambooth.helpers.text import printable, redacted

GROUP = "dreambooth"
"""Entry points whose modules bring kinds."""
COMMANDS = "dreambooth.commands"
"""Entry points whose modules bring commands; a group of its own, as `dbt --help` loads these."""
OWN_DISTRIBUTION = "dreambooth-trainer"
TRACE = "DREAMBOOTH_TRACE_PLUGINS"

Status = Literal["ok", "broken", "collision"]


@dataclass(frozen=True)
class PluginInfo:
    """What is known of one plugin, that is, of one entry point."""

    name: str
    distribution: str | None
    """Name of the installed distribution; None for one registered while running."""
    version: str
    status: Status = "ok"
    slots: tuple[str, ...] = ()
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Kinds by slot; of a broken plugin those it is known to have wanted to bring."""
    error: str = ""
    commands: tuple[str, ...] = ()
    """Commands that join `dbt`."""
    seconds: float = field(default=0.0, compare=False)
    """How long it took to load; what it shares with plugins loaded before it is not counted."""

    @property
    def origin(self) -> str:
        """The distribution and its version, as a person names them."""
        return f"{self.distribution} {self.version}" if self.distribution else "registered here"

    def __str__(self) -> str:
        return f'"{self.name}" ({self.origin})'


@dataclass(frozen=True)
class Source:
    """Where a plugin comes from, before it is loaded."""

    name: str
    distribution: str | None
    version: str
    load: Callable[[], Any]


def discover(group: str = GROUP) -> Iterator[Source]:
    """Yield the entry points of a group, sorted by distribution and name.

    The metadata of a distribution is parsed only where its `entry_points.txt` speaks of the
    group. Of several copies of one distribution on `sys.path` the first one counts.
    """
    start = time.perf_counter()
    mentions = re.compile(rf"^\s*\[\s*{re.escape(group)}\s*\]", re.MULTILINE)
    seen: dict[str, metadata.Distribution] = {}
    for dist in metadata.distributions():
        try:
            if mentions.search(dist.read_text("entry_points.txt") or ""):
                seen.setdefault(re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower(), dist)
        except Exception as error:
            yield _unreadable(str(getattr(dist, "_path", dist)), error)
    trace(f"metadata searched in {elapsed(start)}")
    for name, dist in sorted(seen.items()):
        try:
            yield from _sources(_first(name, dist), group)
        except Exception as error:
            yield _unreadable(name, error)


def _first(name: str, seen: metadata.Distribution) -> metadata.Distribution:
    """Return the copy that counts: it may be one without plugins, which `seen` is not."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:  # a folder that is not named by the rules
        return seen


def _sources(dist: metadata.Distribution, group: str) -> list[Source]:
    name, version = dist.metadata["Name"], dist.version
    found = sorted((ep for ep in dist.entry_points if ep.group == group), key=lambda e: e.name)
    return [Source(ep.name, name, version, ep.load) for ep in found]


def _unreadable(distribution: str, error: Exception) -> Source:
    reason = f"unreadable metadata: {type(error).__name__}: {error}"

    def load() -> Any:
        raise PluginError(reason)

    return Source("entry_points.txt", distribution, "?", load)


def trace(message: str) -> None:
    """Write a line to stderr where DREAMBOOTH_TRACE_PLUGINS asks for it."""
    if os.environ.get(TRACE, "0") not in {"", "0"}:
        print(printable(redacted(f"dreambooth plugins: {message}")), file=sys.stderr)


def spent(start: float) -> float:
    """Return the seconds since `start` (of `time.perf_counter`)."""
    return round(time.perf_counter() - start, 6)


def elapsed(start: float) -> str:
    """Return the time since `start` (of `time.perf_counter`) in milliseconds."""
    return f"{spent(start) * 1000:.1f} ms"
