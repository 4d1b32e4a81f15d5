"""Randomness without state: every draw is a function of (seed, stream, index).

Nothing here is saved in a checkpoint, and nothing that is drawn in between (samples, validation,
another number of workers) can move what training sees.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import torch


def derive(seed: int, stream: str, *index: int) -> int:
    """Hash (seed, stream, index) to an integer in 0..2^63-1 (BLAKE2b, so streams never overlap)."""
    text = ":".join([str(seed), stream, *map(str, index)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, stream: str, *index: int) -> torch.Generator:
    """Return a CPU torch generator for (seed, stream, index)."""
    import torch

    return torch.Generator().manual_seed(derive(seed, stream, *index))


def numpy_generator(seed: int, stream: str, *index: int) -> np.random.Generator:
    """Return a numpy generator for (seed, stream, index)."""
    import numpy as np

    return np.random.Generator(np.random.Philox(derive(seed, stream, *index)))


def permutation(seed: int, stream: str, epoch: int, count: int) -> list[int]:
    """Return the order of `count` items in one epoch."""
    import torch

    order: list[int] = torch.randperm(count, generator=generator(seed, stream, epoch)).tolist()
    return order


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Give torch's global generators, of the CPU and of `device`, back as they were.

    Whatever is seeded in the block (dropout inside modules draws from them) stays in it.
    """
    import torch

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if device.type == "mps":  # one device, whose functions take none
            stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
        elif device.type != "cpu":
            stack.enter_context(torch.random.fork_rng([device], device_type=device.type))
        yield
