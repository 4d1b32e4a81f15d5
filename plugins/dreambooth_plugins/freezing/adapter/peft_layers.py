"""From our typed options, and from files, to PEFT's configurations and layers."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.errors import JobError
from dreambooth_plugins.common.libraries import peft, unquantized
from dreambooth_plugins.formats.lora import low_rank
from dreambooth_plugins.freezing.adapter.methods import (
    Boft,
    Dora,
    Loha,
    Lokr,
    Lora,
    LowRank,
    Lycoris,
    Method,
    Oft,
    Ranked,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.nn import Module

ADAPTER = "default"
"""PEFT's name of the adapter; the only one there is."""


@dataclass(frozen=True)
class Layer:
    """Rank and alpha of one module; 0 for methods that have none."""

    rank: int = 0
    alpha: float = 0.0


def layer_for(found: low_rank.LowRank | low_rank.Factors, method: Method) -> Layer:
    """Return the rank, and the alpha that gives a file's scale under a method's rule."""
    stabilized = isinstance(method, LowRank) and method.rank_stabilized
    return Layer(found.rank, found.scale * (math.sqrt(found.rank) if stabilized else found.rank))


@torch.no_grad()
def load(found: low_rank.LowRank | low_rank.Factors, layer: Any) -> None:
    """Copy a file's tensors into the adapter that was made for them."""
    if isinstance(found, low_rank.Factors):
        # Which factors there are, and how they split a weight, is the file's.
        for name in layer.adapter_layer_names:
            kept, given = getattr(layer, name), found.tensors.get(name)
            if ADAPTER in kept:
                del kept[ADAPTER]
            if given is not None:
                device = layer.get_base_layer().weight.device
                kept[ADAPTER] = torch.nn.Parameter(given.to(device))
        return
    layer.lora_A[ADAPTER].weight.copy_(found.down)
    layer.lora_B[ADAPTER].weight.copy_(found.up)
    if found.magnitude is not None:
        layer.lora_magnitude_vector[ADAPTER].weight.copy_(found.magnitude)


def inject(module: Module, method: Method, plan: Mapping[str, Layer], part: str) -> None:
    """Put PEFT's layers of `method` around the modules that `plan` names, in place.

    `JobError` where a block size does not divide a layer's inputs.
    """
    _check_blocks(module, method, plan, part)
    config = configure(method)
    config.target_modules = list(plan)
    if isinstance(method, Ranked):
        ranks = [layer.rank for layer in plan.values()]
        alphas = [layer.alpha for layer in plan.values()]
        config.r, alpha = _common(ranks), _common(alphas)
        setattr(config, "alpha" if isinstance(method, Lycoris) else "lora_alpha", alpha)
        config.rank_pattern = {n: p.rank for n, p in plan.items() if p.rank != config.r}
        config.alpha_pattern = {n: p.alpha for n, p in plan.items() if p.alpha != alpha}
    # PEFT warns about sizes and extensions, which are checked here.
    with warnings.catch_warnings(action="ignore"), _extension(method), unquantized():
        peft.inject_adapter_in_model(config, module, ADAPTER)


def _common(values: list[Any]) -> Any:
    return max(sorted(set(values)), key=values.count)


@singledispatch
def configure(method: Method) -> Any:
    """Return PEFT's configuration of a method, without targets and ranks."""
    raise JobError(f'adapter method "{method.kind}" is not known here')


@configure.register
def _(method: Lora | Dora) -> Any:
    return peft.LoraConfig(
        lora_dropout=method.dropout,
        use_rslora=method.rank_stabilized,
        use_dora=isinstance(method, Dora),
    )


def _lycoris(method: Lycoris) -> dict[str, Any]:
    return {
        "rank_dropout": method.rank_dropout,
        "module_dropout": method.module_dropout,
        "use_effective_conv2d": method.effective_conv,
    }


@configure.register
def _(method: Loha) -> Any:
    return peft.LoHaConfig(**_lycoris(method))


@configure.register
def _(method: Lokr) -> Any:
    return peft.LoKrConfig(
        **_lycoris(method),
        decompose_both=method.decompose_both,
        decompose_factor=method.factor or -1,
    )


@configure.register
def _(method: Oft) -> Any:
    return peft.OFTConfig(
        oft_block_size=method.block_size,
        module_dropout=method.dropout,
        block_share=method.share_blocks,
        coft=method.constrained is not None,
        eps=method.constrained or 0.0,
    )


@configure.register
def _(method: Boft) -> Any:
    return peft.BOFTConfig(
        boft_block_size=method.block_size,
        boft_n_butterfly_factor=method.butterfly_factors,
        boft_dropout=method.dropout,
    )


def _check_blocks(module: Module, method: Method, plan: Mapping[str, Layer], part: str) -> None:
    """Hold block sizes against the layers: PEFT would adjust some silently, or trip over them.

    Its OFT folds the patches of a convolution back by adding them up, which no R undoes.
    """
    if not isinstance(method, Oft | Boft):
        return
    for name in plan:
        layer: Any = module.get_submodule(name)
        inputs = layer.weight[0].numel()
        if isinstance(method, Oft) and layer.weight[0, 0].numel() > 1:
            raise JobError(
                f"freezing.method: PEFT's OFT changes the convolution {part}.{name} before it has "
                "learned anything",
                "use boft, lora, loha or lokr for convolutions, or take them out of the targets",
            )
        if inputs % method.block_size:
            raise JobError(
                f"freezing.method.block_size: {method.block_size} does not divide the {inputs} "
                f"inputs of {part}.{name}",
                "choose a divisor of every layer's inputs, such as 4 or 8, or fewer targets",
            )


@contextmanager
def _extension(method: Method) -> Iterator[None]:
    """Keep PEFT from compiling BOFT's CUDA kernel where one factor needs none."""
    if not isinstance(method, Boft):
        yield
        return
    from peft.tuners.boft import layer

    if method.butterfly_factors > 1:
        if layer.get_fbd_cuda() is None:
            raise JobError(
                "freezing.method.butterfly_factors: PEFT's CUDA extension cannot be compiled here, "
                "and only 1 works without it",
                "install a CUDA compiler and ninja, or leave butterfly_factors at 1",
            )
        yield
        return
    original = layer.get_fbd_cuda
    layer.get_fbd_cuda = lambda: None
    try:
        yield
    finally:
        layer.get_fbd_cuda = original
