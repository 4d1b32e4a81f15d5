"""Installed plugins: found, loaded behind a guard, checked, asked for the kinds they bring."""

from dreambooth.component.door import WrongAnswer
from dreambooth.plugins.kinds import Registry, Slot, component, register, registry, registry_with
from dreambooth.plugins.loader import PluginInfo

__all__ = [
    "PluginInfo",
    "Registry",
    "Slot",
    "WrongAnswer",
    "component",
    "register",
    "registry",
    "registry_with",
]
