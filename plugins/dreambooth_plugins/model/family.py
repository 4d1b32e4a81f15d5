"""What a family of one's own is made of, where its models are diffusers folders. Public.

The halves without torch are here at once; `LoadedFolder` and `ClipUNet`, which a family's opened
model subclasses, and `skeleton` load on first use. How they go
together: plugins/guides/slots/model.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dreambooth_plugins.model.clip_unet_info import described, holds, read_index, unet_info
from dreambooth_plugins.model.folder.part import Part
from dreambooth_plugins.model.folder.source import Source, read_json
from dreambooth_plugins.model.folder_model import FolderModel

if TYPE_CHECKING:
    from dreambooth_plugins.model.clip_unet import ClipUNet
    from dreambooth_plugins.model.folder.loaded import LoadedFolder
    from dreambooth_plugins.model.folder.loading import skeleton

_WITH_TORCH = {
    "ClipUNet": "dreambooth_plugins.model.clip_unet",
    "LoadedFolder": "dreambooth_plugins.model.folder.loaded",
    "skeleton": "dreambooth_plugins.model.folder.loading",
}

__all__ = [
    "ClipUNet",
    "FolderModel",
    "LoadedFolder",
    "Part",
    "Source",
    "described",
    "holds",
    "read_index",
    "read_json",
    "skeleton",
    "unet_info",
]


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
