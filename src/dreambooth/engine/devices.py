"""Devices and processes. Alone in making and resetting accelerate's process-wide state."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from dreambooth.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth.job import Train


@dataclass(frozen=True)
class Devices:
    """Where one process of a run computes."""

    accelerator: Accelerator
    device: torch.device
    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Say whether this process writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate equal-shaped tensors of all processes along dimension 0."""
        gathered: Tensor = self.accelerator.gather(tensor)
        return gathered

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Add the gradients of all processes up, in place.

        A sum, not a mean: each row was already divided by the effective batch over processes.
        """
        if self.world_size == 1:
            return
        for parameter in parameters:
            torch.distributed.all_reduce(parameter.grad)


def _reset() -> None:
    # One process may run several jobs; accelerate keeps its state in class attributes, so a
    # second job would inherit the first one's device and precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def pick_device(name: str) -> torch.device | None:
    """Return the device a job names, None for `auto`; `JobError` where it does not exist."""
    if name == "auto":
        return None
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # `meta` exists, but holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise JobError(
            f'train.device "{name}" cannot be used: {str(error).splitlines()[0]}',
            'use "auto", or a device this machine has (cpu, cuda:0, mps)',
        ) from error
    return device


@contextmanager
def open_devices(train: Train) -> Iterator[Devices]:
    """Set threads and device up for one run, and give everything back afterwards."""
    wanted = pick_device(train.device)
    threads = torch.get_num_threads()
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    _reset()
    try:
        on_cpu = wanted is not None and wanted.type == "cpu"
        accelerator = Accelerator(mixed_precision="no", cpu=on_cpu)
        device = wanted if wanted is not None else accelerator.device
        yield Devices(accelerator, device, accelerator.process_index, accelerator.num_processes)
    finally:
        _reset()
        torch.set_num_threads(threads)


def describe_machine(device: torch.device) -> dict[str, object]:
    """Say what makes two runs equal to the bit: device, threads, CPU capability, torch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "torch": torch.__version__,
    }
