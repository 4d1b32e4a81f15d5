"""The installed kinds, who brings them, and why one is missing.

Registration goes through plugins, behaviour through the job: a package that is merely installed
changes no run. Every kind has one provider; where two plugins bring the same kind neither wins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter

from dreambooth.component import Component
from dreambooth.component.tagged import Tagged
from dreambooth.errors import PluginError
from dreambooth.plugins.found import OWN_DISTRIBUTION, PluginInfo, Source, discover
from dreambooth.plugins.loader import Loaded, given, load_plugin
from dreambooth.plugins.slots import SLOTS, components

if TYPE_CHECKING:
    from dreambooth.component import AnyJob


class Registry:
    """Installed kinds by slot. Does not change: adding a plugin makes another registry."""

    def __init__(self, loaded: Iterable[Loaded] | None = None) -> None:
        """Take these loaded plugins, or (None) find and load what is installed."""
        self._loaded = tuple(loaded) if loaded is not None else _load_all(discover())
        self._kinds: dict[str, dict[str, type[Component]]] = {slot: {} for slot in SLOTS}
        self._providers: dict[tuple[str, str], list[PluginInfo]] = {}
        for plugin in self._loaded:
            for key in plugin.classes:
                self._providers.setdefault(key, []).append(plugin.info)
        for plugin in self._loaded:
            for (slot, kind), cls in plugin.classes.items():
                if len(self._providers[slot, kind]) == 1:
                    self._kinds[slot][kind] = cls
        for slot in SLOTS:
            self._kinds[slot] = dict(sorted(self._kinds[slot].items()))
        self.infos: tuple[PluginInfo, ...] = tuple(map(self._marked, self._loaded))
        """Every plugin that was found, broken ones included, sorted by distribution and name."""

    def _marked(self, plugin: Loaded) -> PluginInfo:
        texts = [self._collision(*key) for key in plugin.classes if len(self._providers[key]) > 1]
        if not texts:
            return plugin.info
        return replace(plugin.info, status="collision", error="; ".join(texts))

    def kinds(self, slot: str) -> Mapping[str, type[Component]]:
        """Return the usable kinds of a slot, sorted; a kind that two plugins bring is absent."""
        return self._kinds[slot]

    def slots(self) -> Collection[str]:
        """Return the names of the slots."""
        return SLOTS

    def provider(self, slot: str, kind: str) -> PluginInfo:
        """Return the plugin that brings a kind; `PluginError` where none or several do."""
        if kind not in self._kinds[slot]:
            why = self.why_missing(slot, kind)
            raise PluginError(f'no {slot} kind "{kind}"' + (f": {why}" if why else ""))
        name = self._providers[slot, kind][0]
        return next(i for i in self.infos if (i.name, i.origin) == (name.name, name.origin))

    def why_missing(self, slot: str, kind: str) -> str:
        """Say why a kind is not there: a collision, a broken plugin, another slot; or ""."""
        if len(self._providers.get((slot, kind), ())) > 1:
            return self._collision(slot, kind)
        broken = [i for i in self.infos if i.status == "broken"]
        sure = [i for i in broken if kind in i.kinds.get(slot, ())]
        if sure:
            return "; ".join(f"plugin {i} could not be loaded: {i.error}" for i in sure)
        elsewhere = [s for s in SLOTS if kind in self._kinds[s]]
        if elsewhere:
            return f'"{kind}" is {" and ".join(_a(s) for s in elsewhere)}'
        return "; ".join(
            f"plugin {i}, which may bring it, could not be loaded: {i.error}" for i in broken
        )

    def problems(self) -> list[str]:
        """Return a line for each broken or colliding plugin, for whoever talks to the person."""
        lines = [f"plugin {i} is broken: {i.error}" for i in self.infos if i.status == "broken"]
        clashes = [self._collision(*key) for key, who in self._providers.items() if len(who) > 1]
        return lines + clashes

    def taking_part(self, job: AnyJob, more: Iterable[Component] = ()) -> list[PluginInfo]:
        """Return the plugins whose kinds a job uses (and of `more`, e.g. automatic exporters).

        A component that no plugin registered is listed under its class, without distribution.
        """
        found: dict[tuple[str, str], PluginInfo] = {}
        for component in [*(c for _, c in components(job)), *more]:
            info = self.source_of(component)
            found[info.distribution or "", info.name] = info
        return [found[key] for key in sorted(found)]

    def source_of(self, component: Component) -> PluginInfo:
        """Return the plugin that a component comes from; of one that none registered, its class."""
        cls = type(component)
        for slot in SLOTS.values():
            if self._kinds[slot.name].get(component.kind) is cls:
                return self.provider(slot.name, component.kind)
        slots = tuple(s.name for s in SLOTS.values() if isinstance(component, s.base))
        kinds = {slot: (component.kind,) for slot in slots}
        name = f"{cls.__module__}.{cls.__qualname__}"
        return PluginInfo(name, None, "", slots=slots, kinds=kinds)

    def _collision(self, slot: str, kind: str) -> str:
        who = self._providers[slot, kind]
        others = [i for i in who if i.distribution != OWN_DISTRIBUTION]
        names = " and ".join(map(str, who))
        if len(others) < len(who):
            do = f"{_a(slot)} of that name is built in: uninstall {_uninstall(others)}"
        else:
            do = f"uninstall one of {_uninstall(others)}"
        return f'{slot} kind "{kind}" is brought by {names}; {do}, or have its kind renamed'

    def extended(self, plugins: Mapping[str, Any], *, replacing: bool = False) -> Registry:
        """Return a registry with more plugins, by name; `PluginError` where one is broken.

        With `replacing`, plugins registered while running make room for a new one of the same
        name or with one of the same kinds.
        """
        kept = self._loaded
        for name, plugin in plugins.items():
            others = tuple(p for p in kept if p.info.distribution or not replacing)
            new = load_plugin(given(name, plugin), others)
            if new.info.status == "broken":
                raise PluginError(f'plugin "{name}": {new.info.error}')
            if replacing:
                kept = tuple(p for p in kept if not _gives_way(p, new))
            kept = (*kept, new)
        return Registry(kept)

    def runtime_names(self) -> list[str]:
        """Return the names of the plugins registered while running."""
        return [info.name for info in self.infos if info.distribution is None]


class _Process:
    """The registry of this process."""

    current: Registry | None = None
    loading = False


def registry() -> Registry:
    """Return the process's registry; the first call finds and loads the installed plugins."""
    if _Process.current is None:
        if _Process.loading:
            raise PluginError("asks for the installed kinds while it is being loaded itself")
        _Process.loading = True
        try:
            _Process.current = Registry()
        finally:
            _Process.loading = False
    return _Process.current


def register(plugin: Any, name: str | None = None) -> PluginInfo:
    """Add a plugin (a module or object with hooks) to this process, e.g. from a notebook.

    What was registered here before under the same name, or with one of the same kinds, is
    replaced: a notebook cell may be run twice. Raises `PluginError` where the plugin is broken;
    then nothing has changed.
    """
    before = registry()
    name = name or getattr(plugin, "__name__", None) or _free(plugin, before.runtime_names())
    _Process.current = before.extended({name: plugin}, replacing=True)
    return next(i for i in _Process.current.infos if not i.distribution and i.name == name)


@contextmanager
def registry_with(*plugins: Any) -> Iterator[Registry]:
    """Add plugins for the length of a `with` block; afterwards all is as it was before."""
    before = registry()
    named: dict[str, Any] = {}
    for plugin in plugins:
        named[_free(plugin, [*before.runtime_names(), *named])] = plugin
    _Process.current = before.extended(named)
    try:
        yield _Process.current
    finally:
        _Process.current = before


def _load_all(sources: Iterable[Source]) -> tuple[Loaded, ...]:
    loaded: tuple[Loaded, ...] = ()
    for source in sources:
        loaded = (*loaded, load_plugin(source, loaded))
    return tuple(sorted(loaded, key=lambda p: (p.info.distribution or "", p.info.name)))


def _free(plugin: Any, taken: Collection[str]) -> str:
    base = name = str(getattr(plugin, "__name__", type(plugin).__name__))
    count = 1
    while name in taken:
        count += 1
        name = f"{base}-{count}"
    return name


def _gives_way(old: Loaded, new: Loaded) -> bool:
    same = old.info.name == new.info.name or bool(old.classes.keys() & new.classes.keys())
    return old.info.distribution is None and same


def _a(slot: str) -> str:
    nouns = {"data": "data source", "freezing": "freezing policy", "safety": "safety checker"}
    noun = nouns.get(slot, slot).replace("_", " ")
    noun = noun.replace("lr schedule", "learning-rate schedule")
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _uninstall(infos: Iterable[PluginInfo]) -> str:
    return " or ".join(dict.fromkeys(f'"{i.distribution or i.name}"' for i in infos))


class Slot(Tagged):
    """Annotation of a job field: `Annotated[Loss, Slot("loss")]`.

    Takes `{kind: name, ...}`, the bare name, or an instance of the slot's base (registered or
    not). The kinds are looked up when a job is validated, so plugins may be loaded late.
    """

    def __init__(self, name: str) -> None:
        self.name, self.base = name, SLOTS[name].base

    def kinds(self) -> Mapping[str, type[Component]]:
        """Return the installed kinds."""
        return registry().kinds(self.name)

    def why_missing(self, kind: str) -> str:
        """Say which broken or colliding plugin would have brought a kind."""
        return registry().why_missing(self.name, kind)


def component(slot: str, kind: str) -> Any:
    """Return the component of `kind` with its default options."""
    adapter: TypeAdapter[Component] = TypeAdapter(Annotated[Component, Slot(slot)])
    return adapter.validate_python(kind)
