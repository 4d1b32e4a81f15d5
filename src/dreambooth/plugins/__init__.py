"""Installed plugins: found, loaded behind a guard, checked, asked for the kinds they bring."""

from dreambooth.plugins.kinds import PluginInfo, Registry, register, registry, registry_with

__all__ = ["PluginInfo", "Registry", "register", "registry", "registry_with"]
