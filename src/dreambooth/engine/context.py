"""The engine's side of `Context`: what plugins are handed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from dreambooth.engine.cache.entry import making
from dreambooth.engine.cache.store import ChunkStore
from dreambooth.helpers import random

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor

    from dreambooth.engine.devices.precision import Precision
    from dreambooth.engine.devices.processes import Devices
    from dreambooth.engine.reporting import Reporter
    from dreambooth.interfaces import Progress
    from dreambooth.job import Job

T = TypeVar("T")


@dataclass
class EngineContext:
    """One run's `Context` (see `dreambooth.interfaces.context`)."""

    job: Job
    device: torch.device
    precision: Precision
    folder: Path
    reporter: Reporter
    devices: Devices | None = None
    pins: Mapping[str, Any] = field(default_factory=dict)
    """Store entries that earlier lives of the run used, by name (see `ChunkStore.pin`)."""
    stores: list[ChunkStore] = field(default_factory=list)
    """Store entries this run opened."""
    logged: dict[str, float] = field(default_factory=dict)
    """Scalars plugins added since the last logged step."""
    _warned: set[str] = field(default_factory=set)

    @property
    def dtype(self) -> torch.dtype:
        """What frozen parts are held in."""
        return self.precision.dtype

    @property
    def rank(self) -> int:
        """This process's number."""
        return self.devices.rank if self.devices else 0

    @property
    def world_size(self) -> int:
        """How many processes take part."""
        return self.devices.world_size if self.devices else 1

    @property
    def is_main(self) -> bool:
        """Say whether this process writes files."""
        return self.rank == 0

    def random(self, stream: str, *index: int) -> torch.Generator:
        """Return a torch generator for (the job's seed, stream, index)."""
        return random.generator(self.job.train.seed, stream, *index)

    def numpy_random(self, stream: str, *index: int) -> np.random.Generator:
        """Return a numpy generator for (the job's seed, stream, index)."""
        return random.numpy_generator(self.job.train.seed, stream, *index)

    def progress(self, label: str, total: int) -> AbstractContextManager[Progress]:
        """Show progress over `total` units."""
        return self.reporter.progress(label, total)

    def chunks(
        self,
        name: str,
        key: Mapping[str, Any],
        chunk_size: int,
        build: Callable[[Sequence[int]], Mapping[str, Tensor]],
        *,
        total: int | None = None,
    ) -> ChunkStore:
        """Open an entry of the store."""
        store = ChunkStore(
            name,
            key,
            chunk_size,
            build,
            self.reporter,
            total,
            devices=self.devices,
            made=making(self.job.train, self.precision),
            pins=self.pins,
        )
        self.stores.append(store)
        return store

    def autocast(self) -> AbstractContextManager[None]:
        """Run a forward pass in the run's compute precision."""
        return self.precision.autocast()

    def share(self, value: T) -> T:
        """Return the main process's value on every process."""
        return self.devices.share(value) if self.devices else value

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate a tensor of equal shape from all processes."""
        return self.devices.gather(tensor) if self.devices else tensor

    def log(self, name: str, value: float) -> None:
        """Add a scalar to the next logged step."""
        self.logged[name] = float(value)

    def warn(self, message: str) -> None:
        """Tell the person once."""
        if message not in self._warned:
            self._warned.add(message)
            self.reporter.warn(message)
