"""Libraries that others import whenever they are installed, kept out until somebody uses them.

diffusers and PEFT import bitsandbytes for models with quantized weights, which are not trained
here: a second or two, and a warning where one of its kernels is missing.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.machinery import ModuleSpec


class Deferred(ModuleType):
    """Stands for a library and imports it when something in it is asked for."""

    def __init__(self, name: str, spec: ModuleSpec) -> None:
        super().__init__(name)
        self.__spec__ = spec

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # `inspect` asks all modules for files
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


@contextmanager
def deferred(library: str) -> Iterator[None]:
    """Give whoever imports `library` in the block a stand-in; nothing, where it is imported."""
    spec = None if library in sys.modules else find_spec(library)
    if spec is None:
        yield
        return
    stand_in = sys.modules[library] = Deferred(library, spec)
    try:
        yield
    finally:
        if sys.modules.get(library) is stand_in:
            del sys.modules[library]


@contextmanager
def unseen(library: str) -> Iterator[None]:
    """Let `library` pass for one that is not installed in the block, unless it is imported."""
    if library in sys.modules:
        yield
        return
    sys.modules[library] = None  # type: ignore[assignment]  # what the import system has for this
    try:
        yield
    finally:
        del sys.modules[library]
