"""What a plugin sees of the engine: one `Context` a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor

    from dreambooth.component import AnyJob


class Progress(Protocol):
    """A running progress bar."""

    def advance(self, count: int = 1) -> None:
        """Say that `count` more of the announced total are done."""


class Chunks(Protocol):
    """Tensors kept in the content-keyed store, built chunk by chunk and read row by row."""

    @property
    def key(self) -> str:
        """Name of the entry in the store; the run's manifest records it."""

    def row(self, index: int) -> dict[str, Tensor]:
        """Return row `index` of every tensor (no batch dimension); builds its chunk if absent."""

    def ensure(self, count: int, label: str) -> None:
        """Build whatever is missing of rows 0..count-1, with a progress bar named `label`.

        Where several processes train together they share the work, so all of them must call it.
        """

    def present(self, count: int) -> int:
        """Return how many of rows 0..count-1 are in the store already."""

    def forget(self, below: int) -> None:
        """Let chunks leave memory whose rows are all below `below`; they stay on disk."""


class Context(Protocol):
    """One run, as its plugins see it. No plugin touches the accelerator or global state."""

    @property
    def job(self) -> AnyJob:
        """The job being run."""

    @property
    def device(self) -> torch.device:
        """Where tensors live; `meta` while a plan is counted."""

    @property
    def dtype(self) -> torch.dtype:
        """What frozen parts are held in; trained parameters are float32 always."""

    @property
    def folder(self) -> Path:
        """The run's folder."""

    @property
    def is_main(self) -> bool:
        """Say whether this process writes files."""

    @property
    def rank(self) -> int:
        """This process's number."""

    @property
    def world_size(self) -> int:
        """How many processes take part."""

    def random(self, stream: str, *index: int) -> torch.Generator:
        """Return a CPU generator that is a function of (seed, stream, index) alone."""

    def numpy_random(self, stream: str, *index: int) -> np.random.Generator:
        """Return the same for numpy and PIL work (augmentation, caption dropout)."""

    def progress(self, label: str, total: int) -> AbstractContextManager[Progress]:
        """Show a progress bar (lines, where there is no terminal) over `total` units."""

    def chunks(
        self,
        name: str,
        key: Mapping[str, Any],
        chunk_size: int,
        build: Callable[[Sequence[int]], Mapping[str, Tensor]],
        *,
        total: int | None = None,
    ) -> Chunks:
        """Open the store's entry for `key`, which must say all of what the content is.

        Rows are built in chunks of `chunk_size`, by index: `build(indices)` gets the indices of
        one whole chunk and returns tensors with as many rows. A chunk is written whole or built
        again whole, so an interrupted build gives the same bits. How an entry is made (chunk
        size, threads, device, precision, versions) is recorded in it by whoever began it, and it
        is finished so, or another one is begun: `build` may get chunks of another size. With
        `total` the entry has just so many rows and its last chunk may be short; without, it grows.
        """

    def autocast(self) -> AbstractContextManager[None]:
        """Run a forward pass in the run's compute precision."""

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate a tensor of equal shape from all processes along dimension 0."""

    def log(self, name: str, value: float) -> None:
        """Add a scalar to the next logged step."""

    def warn(self, message: str) -> None:
        """Tell the person once (a repeated message is dropped)."""
