"""What `auto` means for a job on a device: its precision, and whether its steps are compiled.

Run, plan, prices, `dbt sample` and the bench ask here. These are rules and never a clock: a job has
one precision on a machine, however busy that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.precision import Name, Precision, has_bf16_units
from dreambooth.engine.reporting import Quiet

if TYPE_CHECKING:
    from dreambooth.interfaces import LoadedModel
    from dreambooth.job import Job

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
# Compiling takes minutes whatever the job. On two cores it then saved 4 ms of a step's 99, with a
# denoiser of 11 M parameters: a CPU never compiles by itself. On a card the saving grows with the
# rows to come, and small denoisers wait for the host, not for the card.
COMPILED_PARAMETERS = 100_000_000
"""Parameters of the denoiser from which a card compiles."""
COMPILED_CELLS = 20_000 * 4096
"""Latent cells of all rows to come from which it does: 20,000 rows of 512 pixels a side for Stable
Diffusion."""


@dataclass(frozen=True)
class Size:
    """What of a job the rule looks at."""

    parameters: int
    """Of the denoiser."""
    cells: int
    """Latent cells of one picture."""


def bf16_pays_on_a_cpu(size: Size) -> bool:
    """Say whether bfloat16 is faster than float32 on a CPU that has units for it."""
    return size.parameters >= PARAMETERS and size.cells >= CELLS


def automatic_precision(device: str, bf16_units: bool, size: Size) -> Name:
    """Return what `auto` is on a type of device.

    CUDA: bfloat16, float16 on cards without it. CPUs: bfloat16 where they have units for it and it
    pays at this size. Everything else: float32.
    """
    if device == "cuda":
        return "bf16" if bf16_units else "fp16"
    return "bf16" if device == "cpu" and bf16_units and bf16_pays_on_a_cpu(size) else "fp32"


def precision_of(job: Job, device: torch.device, recorded: str | None = None) -> Precision:
    """Return the precision of a job on `device`.

    `recorded` is what the run began in, if it did: where the job says `auto`, it stays that.
    """
    wanted = job.train.precision
    for name in get_args(Name):
        if name in (wanted, recorded if wanted == "auto" else None):
            return Precision(name, device)
    units = has_bf16_units(device)
    size = size_of(job) if device.type == "cpu" and units else Size(0, 0)
    return Precision(automatic_precision(device.type, units, size), device)


def size_of(job: Job) -> Size:
    """Count with the model's shapes alone: no weights are read."""
    meta = torch.device("meta")
    ctx = EngineContext(job, meta, Precision("fp32", meta), job.folder, Quiet())
    return size_with(job, job.model.open(ctx))


def size_with(job: Job, model: LoadedModel) -> Size:
    """Return the size of a job whose model is open."""
    denoiser = model.named_parameters("denoiser")
    height, width = (side // model.info.latent.factor for side in job.data.size)
    return Size(sum(p.numel() for _, p in denoiser), height * width)


def compiling_pays(device: str, size: Size, rows: int) -> bool:
    """Say whether `train.compile: auto` compiles on a type of device, with `rows` rows to come."""
    worth = rows * size.cells >= COMPILED_CELLS
    return device == "cuda" and size.parameters >= COMPILED_PARAMETERS and worth
