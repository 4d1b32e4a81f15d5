"""What models hand out and take in: named groups of tensors, and facts of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Latents:
    """Latents of B images, scaled and shifted into the space the denoiser trains in."""

    mean: Tensor
    """[B, C, h, w], float32."""
    std: Tensor | None
    """Same shape; None where the autoencoder is deterministic."""


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is conditioned on: named tensors.

    From `encode_prompts` each tensor belongs to one prompt and has no batch dimension
    (`embeds` [tokens, dim], `pooled` [dim], ...); from `collate` on, dimension 0 is the row.
    """

    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class RowGeometry:
    """Per-row facts some families condition on (SDXL's time ids); sizes are (height, width)."""

    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    target_size: tuple[int, int]


@dataclass(frozen=True)
class AdapterTensors:
    """The adapter of one module, whatever a file calls its tensors."""

    part: str
    module: str
    """The module's name in memory, below its part."""
    tensors: Mapping[str, Tensor]
    """By role: `down` [rank, in] or [rank, in, k, k], `up` [out, rank] or [out, rank, 1, 1], `mid`,
    `magnitude` (DoRA's, [out]), LoHa's and LoKr's factors by LyCORIS' names (`hada_w1_a`), and
    `alpha` [], where the file has one a module."""
