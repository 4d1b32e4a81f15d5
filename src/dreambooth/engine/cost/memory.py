"""Memory by phase: weights and states by their sizes, everything else counted on `meta` tensors.

Bytes are beyond what the program itself takes (the libraries, some 0.5 GiB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth.engine.cost.residency import BEFORE, LOOPING
from dreambooth.jobs.identifiers import chosen_exporters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dreambooth.engine.cost.residency import Phase, Residency
    from dreambooth.job import Job


CUBLAS = 32 * 2**20
"""Bytes of workspace that cuBLAS is given on a Hopper card, 8 MiB on others: the larger is planned
for. It comes out of torch's allocator at the first product."""


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes of one phase, at its peak."""

    phase: Phase
    weights: int
    """Of the parts that are in memory."""
    copy: int = 0
    """A frozen copy of the base, where the prior draws from one or the policy compares with one."""
    states: int = 0
    """Optimizer state and average."""
    working: int = 0
    """The most at once of what comes and goes: activations, gradients, pictures, casts."""
    libraries: int = 0
    """What a card's libraries keep to work in."""

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.copy + self.states + self.working + self.libraries


@dataclass(frozen=True)
class Weights:
    """Bytes of a part of the model."""

    parameters: int
    trained: int
    """How many of them train."""
    wide: int
    """Bytes of one that is frozen."""

    @property
    def loaded(self) -> int:
        """Before anything trains."""
        return self.wide * self.parameters

    @property
    def mastered(self) -> int:
        """With what trains in float32."""
        return self.wide * (self.parameters - self.trained) + 4 * self.trained


def phases(
    residency: Residency,
    weights: Mapping[str, Weights],
    *,
    optimizer: int,
    average: int,
    working: Mapping[Phase, int],
    singly: bool = False,
    libraries: int = 0,
) -> tuple[PhaseMemory, ...]:
    """Add a run's phases up; `working` holds what comes and goes in each.

    `singly`: text encoders come and go one after the other where prompts are encoded.
    """
    found = []
    for phase, parts in residency.parts.items():
        before = phase in BEFORE
        bytes_of = [w.loaded if before else w.mastered for n, w in weights.items() if n in parts]
        held = max(bytes_of, default=0) if singly and phase == "texts" else sum(bytes_of)
        copied = residency.copies.get(phase, frozenset())
        looping = phase in LOOPING
        found.append(
            PhaseMemory(
                phase,
                weights=held,
                copy=sum(w.loaded for name, w in weights.items() if name in copied),
                states=optimizer * looping + average * (looping or phase == "export"),
                working=working[phase],
                libraries=libraries,
            )
        )
    return tuple(found)


def opened_bytes(job: Job, residency: Residency, weights: Mapping[str, Weights]) -> int:
    """Return what an export holds beside the live model when its files are compared with it.

    A file of adapters is opened onto the live base, and so is a whole model's but for what differs
    in it, part by part. Where the base is held in half precision, it is widened to float32 for the
    comparison.
    """
    whole = any(exporter.reads_whole_model for exporter in chosen_exporters(job))
    opened = max((4 * w.parameters for w in weights.values()), default=0) if whole else 0
    return opened + sum(
        (4 - w.wide) * (w.parameters - w.trained)
        for name, w in weights.items()
        if name not in residency.full
    )
