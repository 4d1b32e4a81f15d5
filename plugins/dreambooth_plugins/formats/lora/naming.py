"""From the names of a file to a model's modules: whose they are, and what each tensor is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.interfaces import AdapterTensors
from dreambooth_plugins.formats.lora import diffusers, kohya

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def sort_tensors(
    tensors: Mapping[str, Tensor], by_kohya: Mapping[str, str]
) -> list[AdapterTensors]:
    """Return adapters in the order of the file; `by_kohya` maps his names to those in memory.

    A module that it does not know keeps the name it has in the file. Tensors that are no adapter's
    are left out.
    """
    numbered = kohya.is_kohya(tensors)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name in tensors:
        placed = kohya.place(name) if numbered else diffusers.place(name)
        if placed is not None:
            key, role = placed
            found.setdefault(key, {})[role] = tensors[name]
    known = by_kohya if numbered else {}
    return [
        AdapterTensors(part, known.get(module, f"{part}.{module}").removeprefix(f"{part}."), roles)
        for (part, module), roles in found.items()
    ]
