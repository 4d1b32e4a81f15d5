"""The low-rank adapter of one module, whatever a file calls its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth.interfaces import AdapterTensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from dreambooth.interfaces import Artifact

MAGNITUDE = "lora_magnitude_vector"
"""PEFT's name of DoRA's magnitudes."""


FACTORS = "hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
"""Names of LoHa's and LoKr's factors, an expression: LyCORIS, kohya's and PEFT's are the same."""


@dataclass(frozen=True)
class Factors:
    """A LoHa or LoKr of one module: `scale` times the product of its factors."""

    part: str
    module: str
    tensors: Mapping[str, Tensor]
    """By their names (`FACTORS`), float32."""
    rank: int
    """1 where both of LoKr's factors are whole."""
    scale: float


@dataclass(frozen=True)
class LowRank:
    """The update `scale * up @ down` of one module's weight."""

    part: str
    module: str
    """The module's name in memory, below its part."""
    down: Tensor
    """[rank, in] or [rank, in, k, k]."""
    up: Tensor
    """[out, rank] or [out, rank, 1, 1]."""
    alpha: float
    scale: float
    """What up @ down is multiplied by: alpha / rank, or alpha / sqrt(rank)."""
    magnitude: Tensor | None = None
    """DoRA's, [out]."""

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return self.down.shape[0]


def low_rank(artifact: Artifact) -> list[LowRank]:
    """Return the LoRA and DoRA adapters of an artifact, module by module, in the model's order."""
    tensors = artifact.tensors
    return [
        LowRank(
            part,
            module,
            tensors[f"{part}.{module}.lora_A.default.weight"],
            tensors[f"{part}.{module}.lora_B.default.weight"],
            facts["alpha"],
            facts["scale"],
            tensors.get(f"{part}.{module}.{MAGNITUDE}.default.weight"),
        )
        for part, adapter in artifact.metadata["adapters"].items()
        if adapter["method"]["kind"] in ("lora", "dora")
        for module, facts in adapter["modules"].items()
    ]


def adapters(items: Iterable[LowRank], *, alphas: bool) -> list[AdapterTensors]:
    """Return adapters as a family's layouts take them, with an alpha each where a file has one."""
    import torch

    found = []
    for item in items:
        tensors = {"down": item.down, "up": item.up}
        if alphas:
            tensors["alpha"] = torch.tensor(item.alpha)
        if item.magnitude is not None:
            tensors["magnitude"] = item.magnitude
        found.append(AdapterTensors(item.part, item.module, tensors))
    return found
