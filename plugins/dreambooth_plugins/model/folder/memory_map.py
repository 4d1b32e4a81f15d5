"""Weights out of the memory-mapped file they were read from, little of it in memory at once."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch.nn import Module

PIECE = 128 * 2**20
"""Bytes that are copied before the file's pages are let go of."""
MADV_DONTNEED = 4
"""From Linux's mman.h."""


def own_memory(module: Module, files: Iterable[Path], dtype: torch.dtype) -> None:
    """Copy a module's weights out of `files`, floating ones in `dtype`.

    A file that is replaced during a run then does no harm, and equal weights give equal bits:
    matrix products round differently where a tensor does not start at an aligned address. Pages
    of the file count as the process's memory until they are let go of: copied in one go, a model
    would take its size twice.
    """
    names = frozenset(str(file.resolve()) for file in files)
    copied = 0
    for tensor in (*module.parameters(), *module.buffers()):
        mapped = tensor.data
        wanted = dtype if mapped.is_floating_point() else mapped.dtype
        tensor.data = mapped.to(wanted, copy=True)
        copied += mapped.nbytes
        if copied >= PIECE:
            let_go(names)
            copied = 0
    let_go(names)


def let_go(names: frozenset[str]) -> None:
    """Drop what this process holds of mapped files in memory (Linux; elsewhere it stays).

    Nothing is lost: the mappings stay, are never written to, and read the file again.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        if name and name[0] in names:
            begin, end = (int(address, 16) for address in span.split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
