"""Installed plugins: found, loaded behind a guard, checked, asked for the kinds they bring.

The names load on first use: `dbt --help` looks for commands and needs none of the slots.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreambooth.component.door import WrongAnswer as WrongAnswer
    from dreambooth.plugins.found import PluginInfo as PluginInfo
    from dreambooth.plugins.kinds import Registry as Registry
    from dreambooth.plugins.kinds import Slot as Slot
    from dreambooth.plugins.kinds import component as component
    from dreambooth.plugins.kinds import register as register
    from dreambooth.plugins.kinds import registry as registry
    from dreambooth.plugins.kinds import registry_with as registry_with

_WHERE = {
    "PluginInfo": "dreambooth.plugins.found",
    "WrongAnswer": "dreambooth.component.door",
    **dict.fromkeys(
        ("Registry", "Slot", "component", "register", "registry", "registry_with"),
        "dreambooth.plugins.kinds",
    ),
}

__all__ = [*_WHERE]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
