"""Adapters as files other tools read: diffusers' layout and kohya's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth_plugins.formats.model_spec import write_tensors
from dreambooth_plugins.model.folder.saving import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Artifact, LoadedModel

LORA_FILE = "pytorch_lora_weights.safetensors"
MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class LowRank:
    """The adapter of one module."""

    part: str
    module: str
    down: Tensor
    """[rank, in] or [rank, in, k, k]."""
    up: Tensor
    """[out, rank] or [out, rank, 1, 1]."""
    magnitude: Tensor | None
    rank: int
    alpha: float
    scale: float
    """What up @ down is multiplied by: alpha / rank, or alpha / sqrt(rank)."""


def low_rank(artifact: Artifact) -> list[LowRank]:
    """Return the adapters of an artifact, module by module, in the model's order."""
    out = []
    for part, adapter in artifact.metadata["adapters"].items():
        for module, facts in adapter["modules"].items():
            at = f"{part}.{module}"
            magnitude = artifact.tensors.get(f"{at}.{MAGNITUDE}.default.weight")
            out.append(
                LowRank(
                    part,
                    module,
                    artifact.tensors[f"{at}.lora_A.default.weight"],
                    artifact.tensors[f"{at}.lora_B.default.weight"],
                    magnitude,
                    facts["rank"],
                    facts["alpha"],
                    facts["scale"],
                )
            )
    return out


def write_lora(artifact: Artifact, model: LoadedModel, dest: Path, dtype: str) -> None:
    """Write diffusers' layout: PEFT's names below `unet.`, diffusers' below `text_encoder.`.

    diffusers' loader wants just these: it tells a text encoder's layout by `lora_linear_layer`,
    and a UNet's by `lora_A` in the first name.
    """
    names = model.adapter_keys("diffusers")
    denoiser = set(model.info.part_names("denoiser"))
    tensors: dict[str, Tensor] = {}
    for adapter in low_rank(artifact):
        at = names[f"{adapter.part}.{adapter.module}"]
        plain = adapter.part in denoiser
        down, up = (
            ("lora_A", "lora_B") if plain else ("lora_linear_layer.down", "lora_linear_layer.up")
        )
        tensors[f"{at}.{down}.weight"] = adapter.down
        tensors[f"{at}.{up}.weight"] = adapter.up
        if adapter.magnitude is not None:
            # transformers puts the adapter's name where it finds `.weight`, PEFT where it does not.
            tensors[f"{at}.{MAGNITUDE}{'' if plain else '.weight'}"] = adapter.magnitude
    metadata = {"lora_adapter_metadata": json.dumps(peft_metadata(artifact), sort_keys=True)}
    save(tensors, dest / LORA_FILE, dtype, metadata)


def peft_metadata(artifact: Artifact) -> dict[str, Any]:
    """Return `<part>.<option of peft.LoraConfig>` for each part: what a loader needs, no more.

    Loaders hand all of it to LoraConfig, so an option that only some versions know would make
    the file unreadable for the others.
    """
    out: dict[str, Any] = {}
    for part, adapter in artifact.metadata["adapters"].items():
        facts: Mapping[str, Mapping[str, Any]] = adapter["modules"]
        ranks, alphas = ([f[name] for f in facts.values()] for name in ("rank", "alpha"))
        rank, alpha = (max(sorted(set(v)), key=v.count) for v in (ranks, alphas))
        options = {
            "r": rank,
            "lora_alpha": _whole(alpha),
            "rank_pattern": {m: f["rank"] for m, f in facts.items() if f["rank"] != rank},
            "alpha_pattern": {
                m: _whole(f["alpha"]) for m, f in facts.items() if f["alpha"] != alpha
            },
            "target_modules": sorted(facts),
            "use_dora": adapter["method"]["kind"] == "dora",
            "use_rslora": adapter["method"]["rank_stabilized"],
        }
        out |= {f"{part}.{name}": value for name, value in options.items()}
    return out


def _whole(alpha: float) -> float | int:
    return int(alpha) if alpha == int(alpha) else alpha


def save(
    tensors: Mapping[str, Tensor], path: Path, dtype: str, metadata: Mapping[str, str]
) -> None:
    """Write tensors in `dtype` (alphas stay float32): equal runs give equal bytes."""
    here = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    ready = {n: t if t.ndim == 0 else t.to(DTYPES[dtype]) for n, t in here.items()}
    write_tensors(path, ready, metadata)
