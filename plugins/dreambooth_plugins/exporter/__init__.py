"""Default exporter plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth import hookimpl
from dreambooth_plugins.exporter.adapter import ComfyUI, Kohya, Lora, Peft
from dreambooth_plugins.exporter.diffusers_folder import Diffusers, Merged
from dreambooth_plugins.exporter.embedding import Embedding
from dreambooth_plugins.exporter.single_file import SingleFile

if TYPE_CHECKING:
    from dreambooth.interfaces import Exporter


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    """Return the file formats that come with the trainer."""
    return [ComfyUI, Diffusers, Embedding, Kohya, Lora, Merged, Peft, SingleFile]
