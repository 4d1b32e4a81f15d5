"""Compute precision: what `auto` means for a model on this hardware, and autocast around forwards.

Run, plan, prices, `dbt sample` and the bench ask `resolve`. It is a rule and never a clock: a job
has one precision on a machine, however busy that is.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from dreambooth.engine.context import EngineContext
from dreambooth.engine.reporting import Quiet

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from dreambooth.job import Job

Name = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Name, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# On a CPU with bfloat16 units, autocast pays for casting what trains at every forward and gains by
# the cells each weight is used on. A training step of 2 rows in bfloat16 was this much faster than
# in float32 (median of five pairs, two cores of an EPYC with AVX-512 BF16):
#   latents     9 M     81 M    220 M parameters
#    8 x 8      0.86    0.63    0.91
#   16 x 16     0.89    1.11    1.15
#   32 x 32     1.38    1.39    1.56
# `make bench` measures again on both sides of the bound.
PARAMETERS = 5_000_000
"""Parameters of the denoiser from which a CPU takes bfloat16: none smaller was measured."""
CELLS = 1024
"""Latent cells of a picture (height x width) from which it does: 256 pixels a side for Stable
Diffusion. One picture's and not one forward's: another batch size is no other precision."""


@dataclass(frozen=True)
class Size:
    """What of a job the rule looks at."""

    parameters: int
    """Of the denoiser."""
    cells: int
    """Latent cells of one picture."""


@dataclass(frozen=True)
class Precision:
    """A resolved precision on a device."""

    name: Name
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """What frozen parts are held in."""
        return DTYPES[self.name]

    def autocast(self) -> AbstractContextManager[None]:
        """Run matrix products in the compute precision; float32 needs no autocast."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler: needed for float16, whose small gradients underflow."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def has_bf16_units(device: torch.device) -> bool:
    """Say whether a device multiplies bfloat16 in hardware (on CPUs: AVX-512 BF16 or AMX)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    known = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def pays_on_a_cpu(size: Size) -> bool:
    """Say whether bfloat16 is faster than float32 on a CPU that has units for it."""
    return size.parameters >= PARAMETERS and size.cells >= CELLS


def automatic(device: str, bf16_units: bool, size: Size) -> Name:
    """Return what `auto` is on a type of device.

    CUDA: bfloat16, float16 on cards without it. CPUs: bfloat16 where they have units for it and it
    pays at this size. Everything else: float32.
    """
    if device == "cuda":
        return "bf16" if bf16_units else "fp16"
    return "bf16" if device == "cpu" and bf16_units and pays_on_a_cpu(size) else "fp32"


def resolve(job: Job, device: torch.device, recorded: str | None = None) -> Precision:
    """Return the precision of a job on `device`.

    `recorded` is what the run began in, if it did: where the job says `auto`, it stays that.
    """
    wanted = job.train.precision
    for name in get_args(Name):
        if name in (wanted, recorded if wanted == "auto" else None):
            return Precision(name, device)
    units = has_bf16_units(device)
    size = size_of(job) if device.type == "cpu" and units else Size(0, 0)
    return Precision(automatic(device.type, units, size), device)


def size_of(job: Job) -> Size:
    """Count with the model's shapes alone: no weights are read."""
    meta = torch.device("meta")
    ctx = EngineContext(job, meta, Precision("fp32", meta), job.folder, Quiet())
    model = job.model.open(ctx)
    denoiser = model.named_parameters("denoiser")
    height, width = (side // model.info.latent.factor for side in job.data.size)
    return Size(sum(p.numel() for _, p in denoiser), height * width)
