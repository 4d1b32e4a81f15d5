"""PEFT's methods by name, their options typed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreambooth.component import OneOf, Section

Glob = Annotated[str, Field(min_length=1)]
Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Method(Section):
    """How an adapter changes the layers it is put on."""

    kind: str


class Ranked(Method):
    """A method whose update has a rank and a scale."""

    rank: Rank = 8
    """Rank of the update: 4 to 16 for one subject, more for a style."""
    alpha: Alpha | None = None
    """The update is scaled by alpha / rank; null takes the rank, so that the scale is 1."""
    ranks: dict[Glob, Rank] = Field(default={})
    """Rank of the modules a glob matches, e.g. `{"*.attn2.*": 16}`; the first match counts."""
    alphas: dict[Glob, Alpha] = Field(default={})
    """Alpha of the modules a glob matches; the first match counts."""


class LowRank(Ranked):
    """What LoRA and DoRA have in common."""

    dropout: Share = 0.0
    """Share of an adapter's inputs that are dropped while training."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks learning (arXiv:2312.03732)."""


class Lora(LowRank):
    """W + alpha/rank B A (arXiv:2106.09685): the format every tool reads."""

    kind: Literal["lora"] = "lora"


class Dora(LowRank):
    """LoRA on the direction of each row of W, and a magnitude that trains besides
    (arXiv:2402.09353)."""

    kind: Literal["dora"] = "dora"


class Lycoris(Ranked):
    """What LoHa and LoKr have in common."""

    rank_dropout: Share = 0.0
    """Share of an update's rows that are dropped while training."""
    module_dropout: Share = 0.0
    """Share of forward passes in which a module goes without its adapter while training."""
    effective_conv: bool = False
    """Decompose the kernel of a convolution larger than 1x1 as well (arXiv:2108.06098)."""


class Loha(Lycoris):
    """W + alpha/rank (B1 A1) * (B2 A2), an elementwise product: rank up to rank^2
    (arXiv:2108.06098)."""

    kind: Literal["loha"] = "loha"


class Lokr(Lycoris):
    """W + alpha/rank W1 kron W2, a Kronecker product: very few parameters (arXiv:2212.10650)."""

    kind: Literal["lokr"] = "lokr"
    decompose_both: bool = False
    """Decompose the left factor into low rank, too."""
    factor: Annotated[int, Field(ge=2)] | None = None
    """Size of the left factor; null splits each side as evenly as it can be."""


class Oft(Method):
    """W R with R orthogonal, block by block: angles between neurons stay (arXiv:2306.07280)."""

    kind: Literal["oft"] = "oft"
    block_size: Annotated[int, Field(ge=2, le=4096)] = 32
    """Side of a block of R; must divide the inputs of each layer. Larger learns more."""
    dropout: Share = 0.0
    """Share of blocks that are left alone in a forward pass while training."""
    share_blocks: bool = False
    """One block for all of a layer: far fewer parameters."""
    constrained: float | None = Field(default=None, gt=0.0)
    """Keep R within this distance of the identity (COFT); null does not."""


class Boft(Method):
    """W R with R a product of sparse orthogonal factors, and a scale a row (arXiv:2311.06243)."""

    kind: Literal["boft"] = "boft"
    block_size: Annotated[int, Field(ge=2, le=4096)] = 4
    """Side of a block of a factor; must divide the inputs of each layer."""
    butterfly_factors: Annotated[int, Field(ge=1, le=10)] = 1
    """Number of factors. More than 1 needs PEFT's CUDA extension, which it compiles at first
    use (a CUDA compiler and ninja must be there)."""
    dropout: Share = 0.0
    """Share of blocks that are left alone in a forward pass while training."""


METHODS = OneOf("adapter method", Method, Lora, Dora, Loha, Lokr, Oft, Boft)
