"""The machine: which device is meant, threads, determinism, and what makes two runs equal."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dreambooth.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def pick_device(name: str) -> torch.device | None:
    """Return the device a job names, None for `auto`; `JobError` where it does not exist."""
    if name == "auto":
        return None
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # `meta` exists, but holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError, AttributeError) as error:
        raise JobError(
            f'train.device "{name}" cannot be used: {str(error).splitlines()[0]}',
            'use "auto", or a device this machine has (cpu, cuda:0, mps)',
        ) from error
    return device


def default_device() -> torch.device:
    """Return what `train.device: auto` means here: the accelerator there is, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Make a numbered card the current one for the block.

    What names no device (a kernel's workspace, a library's buffer) otherwise lands on the first
    card, and a second run on the second card fills both.
    """
    cards = None if device.index is None else torch.get_device_module(device)
    if not hasattr(cards, "set_device") or device.type == "cpu":  # MPS has one, without a number
        yield
        return
    before = cards.current_device()
    cards.set_device(device)
    try:
        yield
    finally:
        cards.set_device(before)


@contextmanager
def threads_of(count: int | None) -> Iterator[None]:
    """Compute with another number of CPU threads in the block; None changes nothing."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Have torch take deterministic algorithms in the block, and refuse what has none.

    cuBLAS reads its environment variable when it is first used in the process, so a run in a
    process that has used a card before finds the workspace as it was: set the variable there.
    """
    if not wanted:
        yield
        return
    cudnn, fill = torch.backends.cudnn, torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    only_warn, filled = (
        torch.is_deterministic_algorithms_warn_only_enabled(),
        fill.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    # For code that reads what it has not written; it would cost a pass over every buffer.
    fill.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=only_warn)
        cudnn.deterministic, cudnn.benchmark = before[1:]
        fill.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Say in the block whether CUDA may multiply float32 with a mantissa of ten bits (TF32).

    cuDNN does so by default since Ampere, so that `fp32` would be float32 in name alone: results
    of equal weights differ by 1e-3 between two layouts of the same convolution.
    """
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    cudnn.allow_tf32, cublas.allow_tf32 = tf32, tf32
    try:
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before


def describe_machine(device: torch.device) -> dict[str, object]:
    """Say what makes two runs equal to the bit: device, threads, CPU capability, torch."""
    name = device.type
    if device.type in {"cuda", "xpu"}:
        name = torch.get_device_module(device).get_device_name(device)
    return {
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "torch": torch.__version__,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
