"""Default data plugins: where instance images come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth import hookimpl
from dreambooth_plugins.data.folder import Folder

if TYPE_CHECKING:
    from dreambooth.interfaces import DataSource


@hookimpl
def register_data_sources() -> list[type[DataSource]]:
    """Return the folder of pictures."""
    return [Folder]
