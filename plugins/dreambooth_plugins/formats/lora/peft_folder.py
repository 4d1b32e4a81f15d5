"""PEFT's own folder of an adapter, one for each part: `adapter_config.json` and its tensors.

Holds every method PEFT has, OFT and BOFT included: what turns weights has no place in the layouts
of sums. `<part>/adapter_model.safetensors` has `base_model.model.<module>.oft_R.weight` and so on.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Any

from dreambooth.files import write_text
from dreambooth_plugins.formats.lora.peft import CONFIG, FILE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Artifact, LoadedModel

ADAPTER = "default"
"""PEFT's name of an adapter in memory, which its files leave out."""
PREFIX = "base_model.model."


def write(artifact: Artifact, model: LoadedModel, dest: Path, dtype: str) -> None:
    """Write a folder for each adapted part below `dest`."""
    from dreambooth_plugins.common.tensors import write_tensors

    for part in artifact.metadata["adapters"]:
        (dest / part).mkdir(parents=True)
        tensors = part_tensors(artifact, model, part)
        write_tensors(dest / part / FILE, tensors, {"format": "pt"}, dtype)
        text = json.dumps(configuration(artifact, model, part), indent=2, sort_keys=True)
        write_text(dest / part / CONFIG, text + "\n")


def part_tensors(artifact: Artifact, model: LoadedModel, part: str) -> dict[str, Tensor]:
    """Return a part's tensors by the names that PEFT gives them in files.

    Modules go by their names in memory, as PEFT takes them: of a text encoder without the
    `text_model.` that transformers had before 5.6.
    """
    from dreambooth_plugins.common.libraries import peft

    own = {
        name.removeprefix(f"{part}."): tensor
        for name, tensor in artifact.tensors.items()
        if name.startswith(f"{part}.")
    }
    adapters = {n: t for n, t in own.items() if _module(n, artifact, part)}
    stored = peft.get_peft_model_state_dict(
        model.parts[part], state_dict=adapters, adapter_name=ADAPTER, save_embedding_layers=False
    )
    return {f"{PREFIX}{name}": tensor for name, tensor in stored.items()}


def _module(name: str, artifact: Artifact, part: str) -> str:
    """Return the adapted module that a tensor belongs to; empty where it belongs to none."""
    modules: Mapping[str, Any] = artifact.metadata["adapters"][part]["modules"]
    pieces = name.split(".")
    heads = (".".join(pieces[:i]) for i in range(len(pieces), 0, -1))
    return next((head for head in heads if head in modules), "")


def configuration(artifact: Artifact, model: LoadedModel, part: str) -> dict[str, Any]:
    """Return what PEFT builds a part's layers by, as plain data."""
    live: Any = model.parts[part]
    options: dict[str, Any] = live.peft_config[ADAPTER].to_dict()
    modules = sorted(artifact.metadata["adapters"][part]["modules"])
    options |= {"inference_mode": True, "target_modules": modules}
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return sorted(value) if isinstance(value, set | frozenset) else value
