"""torch.compile around the parts that a training step runs through."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.nn import Module


@dataclass
class Compiled:
    """The parts that a training step runs through, compiled; everything else runs them plainly.

    Samples and validation have other shapes: they would compile again for each.
    """

    modules: list[Module]

    def __post_init__(self) -> None:
        self._calls: list[Any] = [torch.compile(module._call_impl) for module in self.modules]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Use the compiled forms in the block."""
        for module, call in zip(self.modules, self._calls, strict=True):
            module._compiled_call_impl = call
        try:
            yield
        finally:
            for module in self.modules:
                module._compiled_call_impl = None
