"""Finding plugins and loading each behind a guard: what is broken is reported, never registered.

pluggy brings the markers and checks hook signatures. Loading is ours, because pluggy's stops at
the first broken plugin and drops the second of two that share an entry-point name.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, Literal

import pluggy

from dreambooth.component.door import put_back, settings
from dreambooth.console import print_warning
from dreambooth.errors import PluginError
from dreambooth.helpers.text import redacted
from dreambooth.hookspecs import PROJECT
from dreambooth.plugins.classes import Classes, call_hooks, check_options, elapsed, trace
from dreambooth.plugins.slots import SLOTS

OWN_DISTRIBUTION = "dreambooth-trainer"

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


@dataclass(frozen=True)
class Loaded:
    """A plugin after loading: its classes, or (in `info.error`) what is wrong with it."""

    info: PluginInfo
    classes: Classes
    plugin: Any = None


def discover() -> Iterator[Source]:
    """Yield the entry points of the group `dreambooth`, sorted by distribution and name.

    The metadata of a distribution is parsed only where its `entry_points.txt` speaks of the
    group. Of several copies of one distribution on `sys.path` the first one counts.
    """
    start = time.perf_counter()
    mentions = re.compile(rf"^\s*\[\s*{PROJECT}\s*\]", re.MULTILINE)
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
            yield from _sources(_first(name, dist))
        except Exception as error:
            yield _unreadable(name, error)


def _first(name: str, seen: metadata.Distribution) -> metadata.Distribution:
    """Return the copy that counts: it may be one without plugins, which `seen` is not."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:  # a folder that is not named by the rules
        return seen


def _sources(dist: metadata.Distribution) -> list[Source]:
    name, version = dist.metadata["Name"], dist.version
    found = sorted((ep for ep in dist.entry_points if ep.group == PROJECT), key=lambda e: e.name)
    return [Source(ep.name, name, version, ep.load) for ep in found]


def _unreadable(distribution: str, error: Exception) -> Source:
    reason = f"unreadable metadata: {type(error).__name__}: {error}"

    def load() -> Any:
        raise PluginError(reason)

    return Source("entry_points.txt", distribution, "?", load)


def given(name: str, plugin: Any) -> Source:
    """Return the source of a plugin object that is already in hand."""
    return Source(name, None, "", lambda: plugin)


def load_plugin(source: Source, earlier: tuple[Loaded, ...] = ()) -> Loaded:
    """Load one plugin and call its hooks; whatever goes wrong becomes its `info.error`.

    Only KeyboardInterrupt passes. What a plugin prints while loading goes to stderr, so that it
    cannot spoil a listing.
    """
    info = PluginInfo(source.name, source.distribution, source.version)
    classes: Classes = {}
    start = time.perf_counter()
    before = settings()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            plugin = source.load()
            trace(f"{info} imported in {elapsed(start)}")
            for other in earlier:
                if other.plugin is plugin:
                    raise PluginError(f"is the same object as plugin {other.info}")
            call_hooks(plugin, info.name, classes)
            if source.distribution != OWN_DISTRIBUTION:  # ours are held by the test suite
                for cls in classes.values():
                    check_options(cls)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: one plugin must not end the program
        trace(f"{info} is broken\n{''.join(traceback.format_exception(error))}")
        broken = replace(info, status="broken", error=describe(error))
        return Loaded(_with_kinds(broken, classes), {})
    finally:
        if changed := put_back(before):
            print_warning(f"plugin {info} {changed}")
    return Loaded(_with_kinds(info, classes), classes, plugin)


def describe(error: BaseException) -> str:
    """Say in one line what went wrong, and where in the plugin."""
    if isinstance(error, PluginError):
        return error.message
    text = redacted(" ".join(str(error).split()))
    if isinstance(error, pluggy.PluginValidationError):
        return f"wrong hook signature (hooks take no arguments): {text}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _in_plugin(f.filename)]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        text, where = error.msg, f" ({error.filename}:{error.lineno})"
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


def _in_plugin(filename: str) -> bool:
    ours = {__file__, call_hooks.__code__.co_filename}
    return filename not in ours and not re.search(
        r"importlib|[\\/](pydantic|pluggy)[\\/]", filename
    )


def _with_kinds(info: PluginInfo, classes: Classes) -> PluginInfo:
    kinds = {s: tuple(sorted(k for slot, k in classes if slot == s)) for s in SLOTS}
    kinds = {slot: found for slot, found in kinds.items() if found}
    return replace(info, slots=tuple(kinds), kinds=kinds)
