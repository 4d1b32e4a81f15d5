"""diffusers' layout of a LoRA, with ranks and alphas in PEFT's words in the header.

Written: `unet.<module>.lora_A.weight`, `text_encoder.<module>.lora_linear_layer.down.weight`. Read
as well: what diffusers wrote before, `.lora.down.weight` and `.processor.to_q_lora.down.weight`,
and PEFT's own `base_model.model.<module>.lora_A.weight` with an adapter_config.json beside it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from dreambooth_plugins.formats.lora import peft
from dreambooth_plugins.formats.lora.low_rank import FACTORS, MAGNITUDE, adapters, low_rank

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import AdapterTensors, Artifact, LoadedModel

LAYOUT = "diffusers"
LORA_FILE = "pytorch_lora_weights.safetensors"
_NAME = re.compile(
    r"^(?P<module>.+?)(\.lora_linear_layer|\.lora|_lora)?"
    rf"\.(?P<role>lora_A|lora_B|down|up|alpha|{MAGNITUDE}|{FACTORS})"
    r"(\.(?!weight$)[^.]+)?(\.weight)?$"  # PEFT may leave the adapter's name in
)
_ROLES = {
    "lora_A": "down", "down": "down", "lora_B": "up", "up": "up",
    "alpha": "alpha", MAGNITUDE: "magnitude",
}  # fmt: skip
_OLD_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def place(name: str) -> tuple[tuple[str, str], str] | None:
    """Return (part, module in memory) and role of a tensor; None where it is no LoRA's."""
    match = _NAME.match(name)
    if match is None:
        return None
    module = match["module"].removeprefix("base_model.model.")
    part, _, rest = module.partition(".")
    if part not in ("unet", "text_encoder", "text_encoder_2"):
        words = module.startswith(("text_model.", "encoder.layers."))
        part, rest = "text_encoder" if words else "unet", module
    rest = rest.removeprefix("base_model.model.")
    return (part, _today(part, rest)), _ROLES.get(match["role"], match["role"])


def _today(part: str, module: str) -> str:
    """Return a module's name as it is in memory: no `text_model.`, no attention processors."""
    if part.startswith("text_encoder"):
        if part == "text_encoder":  # the other one has the name in memory as well
            module = module.removeprefix("text_model.")
        head, _, last = module.rpartition(".")
        return f"{head}.{_OLD_NAMES[last]}" if last in _OLD_NAMES else module
    module = module.replace(".processor.", ".")
    return f"{module}.0" if module.endswith(".to_out") else module


def write(artifact: Artifact, model: LoadedModel, dest: Path, dtype: str) -> None:
    """Write the file into `dest`, the ranks and alphas of all modules in its header."""
    from dreambooth_plugins.common.tensors import write_tensors

    tensors = model.adapter_file(LAYOUT, adapters(low_rank(artifact), alphas=False))
    metadata = {peft.METADATA: json.dumps(peft.metadata(artifact), sort_keys=True)}
    write_tensors(dest / LORA_FILE, tensors, metadata, dtype)


def file_tensors(
    names: Mapping[str, str], adapters: Iterable[AdapterTensors], denoiser: Collection[str]
) -> dict[str, Tensor]:
    """Return adapters under PEFT's names in the denoiser's parts, and diffusers' in the others.

    `names` maps qualified names of modules to those in files. diffusers' loader wants just these:
    it tells a text encoder's layout by `lora_linear_layer`, and a UNet's by `lora_A` in the first
    name.
    """
    tensors: dict[str, Tensor] = {}
    for adapter in adapters:
        at = names[f"{adapter.part}.{adapter.module}"]
        plain = adapter.part in denoiser
        down, up = (
            ("lora_A", "lora_B") if plain else ("lora_linear_layer.down", "lora_linear_layer.up")
        )
        tensors[f"{at}.{down}.weight"] = adapter.tensors["down"]
        tensors[f"{at}.{up}.weight"] = adapter.tensors["up"]
        if "magnitude" in adapter.tensors:
            # transformers puts the adapter's name where it finds `.weight`, PEFT where it does not.
            name = f"{at}.{MAGNITUDE}{'' if plain else '.weight'}"
            tensors[name] = adapter.tensors["magnitude"]
    return tensors
