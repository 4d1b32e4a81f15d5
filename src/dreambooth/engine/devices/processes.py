"""Devices and processes. Alone in making and resetting accelerate's process-wide state."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import InitProcessGroupKwargs

from dreambooth.engine.devices.allocator import keep_memory
from dreambooth.engine.devices.machine import (
    current,
    default_device,
    deterministic,
    float32_products,
    pick_device,
)
from dreambooth.errors import JobError
from dreambooth.process import launcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from dreambooth.job import Train


T = TypeVar("T")

PATIENCE = timedelta(hours=24)
"""How long a process waits for the others: one may draw samples or export for long. A process
that died is noticed by whoever launched them."""


def _unwatched() -> None:
    """Take no note."""


@dataclass(frozen=True)
class Devices:
    """Where one process of a run computes, and how it speaks with the others."""

    accelerator: Accelerator
    device: torch.device
    rank: int
    world_size: int
    host: Any = None
    """The processes' group for numbers in host memory: a card's work has no part in it."""
    moved: Callable[[], None] = _unwatched
    """Says that this process got on, for whoever watches for a run that hangs."""

    @property
    def is_main(self) -> bool:
        """Say whether this process writes files."""
        return self.rank == 0

    def describe(self) -> str:
        """Return the device and, where there are several, the number of processes."""
        several = f", {self.world_size} processes" if self.world_size > 1 else ""
        return f"{self.device}{several}"

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            self.accelerator.wait_for_everyone()

    def share(self, value: T) -> T:
        """Return the main process's value on every process; all of them wait for it."""
        if self.world_size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def join(self, values: list[T]) -> list[T]:
        """Concatenate the lists of all processes."""
        if self.world_size == 1:
            return values
        lists: list[list[T]] = [[] for _ in range(self.world_size)]
        torch.distributed.all_gather_object(lists, values)
        return [value for one in lists for value in one]

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate equal-shaped tensors of all processes along dimension 0."""
        gathered: Tensor = self.accelerator.gather(tensor)
        return gathered

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor of equal shape up over all processes, in place, and return it."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Return the largest of all processes' numbers, place by place; all of them wait for it."""
        if self.world_size == 1:
            return list(numbers)
        highest, largest = torch.tensor(numbers), torch.distributed.ReduceOp.MAX
        torch.distributed.all_reduce(highest, largest, self.host)
        return [int(number) for number in highest]


class Agreement:
    """A number on which the processes agree once a step, without waiting for each other.

    They speak over a group of their own, in host memory: what a card is busy with has no part in
    it. Every process makes one at the same place.
    """

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._asked: tuple[Tensor, torch.distributed.Work] | None = None
        self._group: Any = None
        if devices.world_size > 1:
            self._group = host_group()

    def largest(self, mine: int) -> int:
        """Return the largest number of any process, the same in all of them.

        Where there are several, the answer is to the call before: by now it has arrived.
        """
        if self._devices.world_size == 1:
            return mine
        before = 0
        if self._asked is not None:
            answer, work = self._asked
            work.wait()
            before = int(answer)
        number, largest = torch.tensor(mine), torch.distributed.ReduceOp.MAX
        work = torch.distributed.all_reduce(number, largest, self._group, async_op=True)
        self._asked = number, work
        return before


def _reset() -> None:
    # One process may run several jobs; accelerate keeps its state in class attributes, so a
    # second job would inherit the first one's device and precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


@contextmanager
def open_devices(train: Train, moved: Callable[[], None] = _unwatched) -> Iterator[Devices]:
    """Set threads, device and determinism up for one run, and give everything back afterwards."""
    launcher.require_environment(port=False)
    wanted = pick_device(train.device)
    threads = torch.get_num_threads()
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    _reset()
    try:
        with deterministic(train.deterministic), float32_products(tf32=train.tf32):
            devices = replace(_found(wanted), moved=moved)
            with current(devices.device):
                yield devices
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        _reset()
        torch.set_num_threads(threads)


def _found(wanted: torch.device | None) -> Devices:
    """Open the device; `JobError` where the processes of the run do not find each other."""
    try:
        return _open(wanted)
    except (torch.distributed.DistError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, ValueError) and launcher.process_count() == 1:
            raise
        if "EADDRINUSE" in str(error):
            raise launcher.port_taken(os.environ.get("MASTER_PORT"), "it is taken") from error
        raise JobError(
            f"the processes of this run do not find each other: {said}", launcher.HINT
        ) from error


def _open(wanted: torch.device | None) -> Devices:
    on_cpu = (wanted or default_device()).type == "cpu"
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OMP_NUM_THREADS/MKL_NUM_THREADS unset")
        accelerator = Accelerator(
            mixed_precision="no",
            cpu=on_cpu,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    torch.set_num_threads(threads)  # accelerate has its own opinion where there are several
    device = accelerator.device
    if accelerator.num_processes == 1:
        device = wanted or default_device()
    elif wanted is not None and wanted.index is not None:
        raise JobError(
            f"train.device {wanted} is one card, and {accelerator.num_processes} processes share "
            "this run: each takes a card of its own",
            f'write "{wanted.type}", and choose the cards with CUDA_VISIBLE_DEVICES',
        )
    elif wanted is not None and wanted.type != device.type:
        raise JobError(
            f"train.device {wanted}: {accelerator.num_processes} processes would run on {device}",
            f'write "{device.type}" or "auto", or train in one process',
        )
    if device.type == "cpu":
        keep_memory()
    count = accelerator.num_processes
    host = host_group() if count > 1 else None
    return Devices(accelerator, device, accelerator.process_index, count, host)


def host_group() -> Any:
    """Return a new group of all processes in host memory; all of them make it at the same place."""
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
