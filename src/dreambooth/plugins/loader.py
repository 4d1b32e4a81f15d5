"""Finding plugins and loading each behind a guard: what is broken is reported, never registered.

pluggy brings the markers and checks hook signatures. Loading is ours, because pluggy's stops at
the first broken plugin and drops the second of two that share an entry-point name.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any

from dreambooth.component.door import put_back, settings
from dreambooth.console import print_warning
from dreambooth.errors import PluginError
from dreambooth.plugins.classes import Classes, call_hooks, check_options
from dreambooth.plugins.found import OWN_DISTRIBUTION, PluginInfo, Source, elapsed, spent, trace
from dreambooth.plugins.hooks import describe
from dreambooth.plugins.slots import SLOTS


@dataclass(frozen=True)
class Loaded:
    """A plugin after loading: its classes, or (in `info.error`) what is wrong with it."""

    info: PluginInfo
    classes: Classes
    plugin: Any = None


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
        broken = replace(info, status="broken", error=describe(error), seconds=spent(start))
        return Loaded(_with_kinds(broken, classes), {})
    finally:
        if changed := put_back(before):
            print_warning(f"plugin {info} {changed}")
    info = replace(info, seconds=spent(start))
    return Loaded(_with_kinds(info, classes), classes, plugin)


def _with_kinds(info: PluginInfo, classes: Classes) -> PluginInfo:
    kinds = {s: tuple(sorted(k for slot, k in classes if slot == s)) for s in SLOTS}
    kinds = {slot: found for slot, found in kinds.items() if found}
    return replace(info, slots=tuple(kinds), kinds=kinds)
