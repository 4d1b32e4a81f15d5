"""glibc's allocator, told to keep what it has: half of a large CPU step can be page faults.

glibc asks the system for each big tensor and gives it back when it is freed, so every step pays
for fresh, zeroed pages again. Kept in the heap they are reused. The price is a few per cent more
peak memory, and that memory which is freed stays with the process (other tensors take it).
"""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h; values are C ints, so the largest threshold is just under 2 GiB.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1
HEAP_STEP = 64 * 2**20
"""Bytes the heap grows by beyond what is asked for."""


def keep_memory() -> bool:
    """Tell glibc to serve big blocks from a heap that never shrinks, for the whole process.

    Say whether it took it: False on other C libraries and systems. Best called before the first
    large tensor exists.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return False
    options = ((MMAP_MAX, 0), (TRIM_THRESHOLD, LARGEST), (TOP_PAD, HEAP_STEP))
    return all(libc.mallopt(name, value) == 1 for name, value in options)
