"""Read LoHa and LoKr files back by their readers' rules, and compare each update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.interfaces import Check
from dreambooth_plugins.common.dtypes import torch_dtype
from dreambooth_plugins.exporter.comparison import weights_in_place

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.interfaces import Artifact, LoadedModel

FLOAT32 = 1e-5
"""Largest difference of an update in float32, as a share of its largest value."""
HALF = {"fp16": 5e-3, "bf16": 4e-2}
"""The same for factors that were rounded: three or four of them are multiplied."""


def check_factors(artifact: Artifact, model: LoadedModel, file: Path, dtype: str) -> Check:
    """Compare the update of each module in `file` with that of the live model's layer.

    diffusers reads no such file: the rules are those of LyCORIS, alpha / rank where a factor tells
    its rank.
    """
    import torch
    from safetensors.torch import load_file

    from dreambooth_plugins.formats.lora.lycoris import delta

    stored = {
        f"{found.part}.{found.module}": {role: t.float() for role, t in found.tensors.items()}
        for found in model.read_adapter(load_file(file))
    }
    worst, count = 0.0, 0
    with torch.no_grad(), weights_in_place(model, artifact.tensors):
        for part, adapter in artifact.metadata["adapters"].items():
            for module in adapter["modules"]:
                found = stored.pop(f"{part}.{module}", {})
                alpha = found.pop("alpha", None)
                layer: Any = model.parts[part].get_submodule(module)
                live = layer.get_delta_weight("default").float().cpu().flatten(1)
                if not found:
                    return Check(False, f"{file.name} lacks the adapter of {part}.{module}")
                scale = None if alpha is None else float(alpha)
                if "up" in found:
                    up, down = found["up"].flatten(1), found["down"]
                    there = up @ down.flatten(1) * (1.0 if scale is None else scale / len(down))
                else:
                    there = delta(found, scale)
                if there.shape != live.shape:
                    return Check(False, f"{part}.{module} has another size in {file.name}")
                top = max(float(live.abs().max()), 1e-12)
                worst, count = max(worst, float((there - live).abs().max()) / top), count + 1
    if stored:
        return Check(False, f"{file.name} has adapters of modules that have none: {min(stored)}")
    bound = FLOAT32 if torch_dtype(dtype) == torch.float32 else HALF[dtype]
    return Check(
        worst <= bound,
        f"read back by LyCORIS' rules: {count} updates, apart by {worst:.1e} of the largest value",
        {"updates": count, "apart": worst},
    )
