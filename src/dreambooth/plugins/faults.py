"""Whose fault an exception is: it is told under the plugin's name where a plugin raised it.

The traceback knows. Calls of plugins go through a door (`component.door`), whose frames name
component and method; code of a plugin that runs without one (a backward pass, an optimizer's step,
modules that a policy injected) is known by its package.
"""

from __future__ import annotations

import re
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.component import Component
from dreambooth.component.door import DOOR, Called, WrongAnswer, told_by
from dreambooth.errors import PluginError, UserError
from dreambooth.plugins.found import OWN_DISTRIBUTION, PluginInfo
from dreambooth.plugins.kinds import registry
from dreambooth.plugins.slots import SLOTS, components

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType, TracebackType

    from dreambooth.component import AnyJob

SHOWN = 300
"""Characters of what an exception says."""


@dataclass(frozen=True)
class Place:
    """Where in a plugin something happened."""

    owner: Called
    method: str
    file: str
    line: int

    def __str__(self) -> str:
        """Return `plugin "mine" (my-pkg 0.1.0), loss "x", rows() (my_pkg/plugin.py:21)`."""
        where = f"{_short(self.file, _package(type(self.owner)))}:{self.line}"
        return f"{named(self.owner)}, {self.method}() ({where})"


def plugin_fault(error: BaseException, job: AnyJob | None = None) -> PluginError | None:
    """Return the error that names the plugin which raised `error`; None where none did.

    What a person can mend, an interrupt and too little memory are nobody's fault; and what the
    system refuses our own plugins (a picture that went away) is not theirs. Code of a plugin that
    runs outside of its methods is known by the components of `job`.
    """
    if isinstance(error, UserError | KeyboardInterrupt | GeneratorExit | MemoryError):
        return None
    places = list(_places(error.__traceback__, job))
    if not places:
        return None
    place = places[0]
    ours = is_ours(place.owner)
    if ours and isinstance(error, OSError) and error.filename is not None:
        return None
    asked = next((p for p in places if p.owner is not place.owner), None)
    by = f"; asked by {asked}" if asked and not isinstance(error, WrongAnswer) else ""
    return PluginError(f"{place}: {_said(error)}{by}", _hint(ours))


@contextmanager
def named_where_it_ends() -> Iterator[None]:
    """Raise the error that names the plugin for what a plugin raises in the block."""
    try:
        yield
    except (Exception, SystemExit) as error:
        fault = plugin_fault(error)
        if fault is None:
            raise
        raise fault from error


@contextmanager
def remarks_to(warn: Callable[[str], None]) -> Iterator[None]:
    """Tell, once each, what plugins changed for the whole process in the block."""
    said: set[str] = set()

    def tell(owner: Any, method: str, what: str) -> None:
        remark = f"{defined(owner, method)} {what}"
        if remark not in said:
            said.add(remark)
            warn(remark)

    with told_by(tell):
        yield


def refused(owner: Called, method: str, fault: str) -> PluginError:
    """Return the error about an answer that only the engine can tell to be wrong."""
    return PluginError(f"{defined(owner, method)}: {fault}", _hint(is_ours(owner)))


def defined(owner: Called, method: str) -> Place:
    """Return where a plugin's method is defined."""
    function: Any = getattr(type(owner), method)
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = function.__code__
    return Place(owner, method, code.co_filename, code.co_firstlineno)


def named(owner: Called) -> str:
    """Return `plugin "mine" (my-policies 0.1.0), loss "x"` of a component or what one opened."""
    component = owner if isinstance(owner, Component) else owner.opened_by
    info = _source(owner)
    known = info.distribution is not None or info.name in registry().runtime_names()
    plugin = f"plugin {info}" if known else f"{info.name} (in no plugin)"
    slot = next((s.name for s in SLOTS.values() if isinstance(component, s.base)), "")
    return f'{plugin}, {slot} "{component.kind}"' if slot and component else plugin


def owner_of(module: str) -> str | None:
    """Return `plugin "mine" (my-pkg 0.1.0)` for a module of somebody's plugin, else None."""
    for slot in SLOTS:
        for kind, cls in registry().kinds(slot).items():
            info = registry().provider(slot, kind)
            if _package(cls) == _root(module) and info.distribution != OWN_DISTRIBUTION:
                return f"plugin {info}"
    return None


def is_ours(owner: Called) -> bool:
    """Say whether something comes with this distribution."""
    return _source(owner).distribution == OWN_DISTRIBUTION


def _hint(ours: bool) -> str:
    if ours:
        return "this is a fault of dreambooth-trainer, not yours: please report it"
    return "this is a fault of the plugin, not of the job"


def _said(error: BaseException) -> str:
    if isinstance(error, WrongAnswer):
        return str(error)
    if isinstance(error, SystemExit):
        return f"asked the program to end (exit code {error.code!r})"
    text = " ".join(str(error).split())
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return f"{type(error).__name__}{': ' if text else ''}{text}"


def _source(owner: Called) -> PluginInfo:
    component = owner if isinstance(owner, Component) else owner.opened_by
    if component is not None:
        return registry().source_of(component)
    return PluginInfo(f"{type(owner).__module__}.{type(owner).__qualname__}", None, "")


def _places(trace: TracebackType | None, job: AnyJob | None) -> Iterator[Place]:
    """Yield where plugins stood when an exception was raised, innermost first."""
    inside: list[tuple[FrameType, int]] = []
    for frame, line in reversed(list(traceback.walk_tb(trace))):
        if frame.f_code is DOOR:
            owner, method = frame.f_locals["self"], frame.f_locals["name"]
            yield from _without_door(inside, owner, job)
            yield _innermost(inside, owner, method)
            inside = []
        else:
            inside.append((frame, line))
    yield from _without_door(inside, None, job)


def _innermost(inside: Iterable[tuple[FrameType, int]], owner: Called, method: str) -> Place:
    packages = {_package(cls) for cls in type(owner).__mro__} - {"dreambooth"}
    for frame, line in inside:
        if _root(frame.f_globals.get("__name__", "")) in packages:
            return Place(owner, method, frame.f_code.co_filename, line)
    return defined(owner, method)


def _without_door(
    inside: Iterable[tuple[FrameType, int]], owner: Called | None, job: AnyJob | None
) -> Iterator[Place]:
    """Yield the innermost frame of another plugin than that of `owner`, called by no method."""
    own = _package(type(owner)) if owner is not None else ""
    by_package = {_package(type(c)): c for _, c in components(job)} if job else {}
    for frame, line in inside:
        package = _root(frame.f_globals.get("__name__", ""))
        mine = frame.f_locals.get("self")
        found = mine if isinstance(mine, Called) else by_package.get(package)
        if found is not None and package not in {own, "dreambooth"}:
            yield Place(found, frame.f_code.co_name, frame.f_code.co_filename, line)
            return


def _package(cls: type) -> str:
    return _root(cls.__module__)


def _root(module: str) -> str:
    return module.partition(".")[0]


def _short(file: str, package: str) -> str:
    """Return a file's path from its package on."""
    parts = Path(file).parts
    start = next((i for i, part in enumerate(parts) if part == package), len(parts) - 1)
    return re.sub(r"\\", "/", str(Path(*parts[start:])))
