"""LoHa and LoKr in the layout of LyCORIS, which AUTOMATIC1111, Forge and ComfyUI read.

`lora_unet_<module>.hada_w1_a` and so on, beside kohya's names, with an `.alpha` a module.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dreambooth_plugins.formats.lora.low_rank import FACTORS, Factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dreambooth.interfaces import Artifact

METHODS = ("loha", "lokr")
_FACTOR = re.compile(rf"\.({FACTORS})\.default$")


def factors(artifact: Artifact) -> list[Factors]:
    """Return the LoHa and LoKr adapters of an artifact, module by module."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in artifact.tensors.items():
        if match := _FACTOR.search(name):
            found.setdefault(name[: match.start()], {})[match[1]] = tensor
    return [
        Factors(part, module, found[f"{part}.{module}"], int(facts["rank"]), facts["scale"])
        for part, adapter in artifact.metadata["adapters"].items()
        if adapter["method"]["kind"] in METHODS
        for module, facts in adapter["modules"].items()
    ]


def as_read(adapter: Factors) -> tuple[dict[str, Tensor], float]:
    """Return a module's tensors and alpha, such that readers come to the same update.

    They scale by alpha / rank, where one of the factors is in two and so tells the rank. Of two
    whole ones they leave alpha out of account: there the scale goes into the left factor. LyCORIS
    itself takes no file without an alpha, and 1 for the rank there.
    """
    tensors = dict(adapter.tensors)
    if "lokr_w1" in tensors and "lokr_w2" in tensors:
        tensors["lokr_w1"] = tensors["lokr_w1"] * adapter.scale
        return tensors, 1.0
    return tensors, adapter.scale * adapter.rank


def delta(tensors: Mapping[str, Tensor], alpha: float | None) -> Tensor:
    """Return the update as readers make it of a file's tensors: [out, in], kernels flattened."""
    import torch

    def product(name: str, core: str) -> Tensor:
        if name in tensors:
            return tensors[name]
        a, b = tensors[f"{name}_a"], tensors[f"{name}_b"]
        if core in tensors:
            return torch.einsum("mo,mnkl,ni->oikl", a, tensors[core], b)
        return a @ b

    if "hada_w1_a" in tensors:
        whole = product("hada_w1", "hada_t1") * product("hada_w2", "hada_t2")
        rank = tensors["hada_w1_b"].shape[0]
    else:
        left, right = product("lokr_w1", ""), product("lokr_w2", "lokr_t2").contiguous()
        ends = [tensors[n].shape[0] for n in ("lokr_w2_b", "lokr_w1_b") if n in tensors]
        rank = ends[0] if ends else 0
        whole = torch.kron(left.reshape(*left.shape, *(1,) * (right.dim() - 2)), right)
    scale = alpha / rank if alpha is not None and rank else 1.0
    return (whole * scale).flatten(1)
