"""How the processes of a run share a training step: each has rows of its own, gradients are summed.

`parallel_for` decides which way a run takes; a step and what comes after it ask a `Parallel` alone.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn import Module, ModuleDict, Parameter
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from dreambooth.engine.devices.processes import Devices
    from dreambooth.interfaces import LoadedModel

B = TypeVar("B")


class Parallel:
    """One process, which has every row. Other ways override what they do otherwise."""

    def rows(self, forward: Callable[[B], Tensor], batch: B, *, last: bool) -> Tensor:
        """Return `forward(batch)`; its backward pass leaves the step's gradients.

        `last` says that no other forward of this step follows: after its backward pass each
        gradient is the sum over all processes and all forwards of the step. A sum, not a mean: a
        row's loss was divided by the effective batch over all processes.
        """
        return forward(batch)

    def end(self) -> None:
        """Let go of what only further steps would need."""


class Overlapped(Parallel):
    """torch's DistributedDataParallel: gradients are summed while the backward pass goes on.

    Every process holds all weights. Which parameters a step leaves out may differ from step to
    step (a part of an encoder that the loss does not see), so DDP looks for them; its buckets then
    stay as they were laid out first, so that a resumed run sums in the same order, to the bit.
    """

    def __init__(self, model: LoadedModel, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = parameters
        parts = sorted({name.split(".", 1)[0] for name in parameters})
        self._step = _Step({part: model.parts[part] for part in parts})
        self._training: frozenset[str] = frozenset()
        self._ddp: DistributedDataParallel | None = None

    def rows(self, forward: Callable[[B], Tensor], batch: B, *, last: bool) -> Tensor:
        """Return `forward(batch)`, the last one of a step through DDP's hooks."""
        ddp = self._current()
        with nullcontext() if last else ddp.no_sync():
            found: Tensor = ddp(forward, batch)
        return found

    def end(self) -> None:
        """Drop DDP and the buckets that gradients lie in."""
        self._ddp, self._training = None, frozenset()

    def _current(self) -> DistributedDataParallel:
        """Return DDP around what trains now; a stage in which something else does has its own."""
        training = frozenset(n for n, p in self._parameters.items() if p.requires_grad)
        if self._ddp is None or training != self._training:
            self._ddp = None  # its hooks go before the next one's come
            self._ddp, self._training = _ddp_around(self._step), training
        return self._ddp


class _Step(Module):
    """What DDP wraps: the parts in which something trains, called by whatever `forward` does."""

    def __init__(self, parts: Mapping[str, Module]) -> None:
        super().__init__()
        self.parts = ModuleDict(parts)
        # DDP warns, past Python's filters, where it looks for unused parameters and finds none.
        self.unused = Parameter(torch.zeros(()))

    def forward(self, forward: Callable[[Any], Tensor], batch: Any) -> Tensor:
        """Return what the engine's forward gives for a batch."""
        return forward(batch)


def _ddp_around(step: _Step) -> DistributedDataParallel:
    with warnings.catch_warnings():  # torch 2.13 has another name for `broadcast_buffers`
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        ddp = DistributedDataParallel(
            step,
            broadcast_buffers=False,
            init_sync=False,  # every process has read the same weights
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
    ddp.register_comm_hook(None, lambda _, bucket: _summed(bucket))
    return ddp


def _summed(bucket: Any) -> torch.futures.Future[Tensor]:
    """Add a bucket up over all processes; DDP by itself takes the mean."""
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return summed


def parallel_for(
    devices: Devices | None, model: LoadedModel, parameters: Mapping[str, Parameter]
) -> Parallel:
    """Return how a run shares its steps: DDP where there are several processes."""
    if devices is None or devices.world_size == 1:
        return Parallel()
    return Overlapped(model, parameters)
