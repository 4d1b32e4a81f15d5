"""Default callbacks."""

from __future__ import annotations

from dreambooth import Callback, hookimpl
from dreambooth_plugins.callback.dvar import Dvar
from dreambooth_plugins.callback.patience import Patience
from dreambooth_plugins.callback.time_limit import TimeLimit


@hookimpl
def register_callbacks() -> list[type[Callback]]:
    """Bring `time_limit`, and the rules for `early_stop`: `patience` and `dvar`."""
    return [TimeLimit, Patience, Dvar]
