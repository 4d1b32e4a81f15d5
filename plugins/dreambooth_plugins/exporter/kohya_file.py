"""kohya's LoRA layout: names, alphas and `ss_*` metadata."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.helpers.naming import base_name
from dreambooth_plugins.exporter.adapter_files import low_rank, save
from dreambooth_plugins.exporter.metadata import VERSIONS, model_spec, run_name

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Artifact, Context, LoadedModel
    from dreambooth_plugins.exporter.adapter_files import LowRank


def write_kohya(
    artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context, dtype: str
) -> None:
    """Write `<run>.safetensors`: `lora_down`, `lora_up` and the alpha of each module."""
    names = model.adapter_keys("kohya")
    tensors: dict[str, Tensor] = {}
    adapters = with_one_alpha(low_rank(artifact))
    for adapter in adapters:
        at = names[f"{adapter.part}.{adapter.module}"]
        tensors[f"{at}.lora_down.weight"] = adapter.down
        tensors[f"{at}.lora_up.weight"] = adapter.up
        tensors[f"{at}.alpha"] = torch.tensor(adapter.alpha)
    facts = metadata(artifact, adapters, model, ctx)
    save(tensors, dest / file_name(ctx), dtype, facts)


def file_name(ctx: Context) -> str:
    """Return what the file is called: programs show it by this name."""
    return f"{run_name(ctx, 'adapter')}.safetensors"


def with_one_alpha(adapters: list[LowRank]) -> list[LowRank]:
    """Return the adapters with one alpha a part, the commonest; the rest goes into `up`.

    Readers multiply by alpha / rank, whatever rule the scale was made by. diffusers gives all
    modules of a part the commonest alpha, so other ones would be read wrongly there.
    """
    out = []
    for part in dict.fromkeys(a.part for a in adapters):
        inside = [a for a in adapters if a.part == part]
        alphas = [_plain_alpha(a) for a in inside]
        common = max(sorted(set(alphas)), key=alphas.count)
        for adapter, alpha in zip(inside, alphas, strict=True):
            up = adapter.up if alpha == common else adapter.up * (alpha / common)
            scale = common / adapter.rank
            out.append(replace(adapter, up=up, alpha=common, scale=scale))
    return out


def _plain_alpha(adapter: LowRank) -> float:
    """Return the alpha that gives the scale by the rule alpha / rank."""
    alpha = adapter.scale * adapter.rank
    return adapter.alpha if math.isclose(alpha, adapter.alpha) else alpha


def metadata(
    artifact: Artifact, adapters: list[LowRank], model: LoadedModel, ctx: Context
) -> dict[str, str]:
    """Return what programs show of a LoRA: texts all, as safetensors wants them.

    No times and no paths, so that equal runs give equal files.
    """
    ranks, alphas = {a.rank for a in adapters}, {a.alpha for a in adapters}
    version = VERSIONS.get(model.info.family, model.info.family)
    out: dict[str, Any] = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": f"{ranks.pop()}" if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
        "ss_base_model_version": version,
        "ss_v2": str(version == "sd_v2"),
        "ss_steps": str(artifact.metadata.get("steps", "")),
        **model_spec(model.info, ctx.job, "/lora"),
    }
    if ctx.job is not None:
        out |= _job_metadata(ctx.job, artifact)
    return {name: text for name, text in out.items() if text}


def _job_metadata(job: Any, artifact: Artifact) -> dict[str, Any]:
    words = f"{job.subject.identifier} {job.subject.class_noun}"
    height, width = job.data.size
    rates = getattr(job.freezing, "lr", {})
    count = artifact.metadata.get("images", 0)
    return {
        "ss_output_name": job.name,
        "ss_sd_model_name": base_name(job),
        "ss_max_train_steps": str(job.train.steps),
        "ss_learning_rate": f"{job.optimizer.lr:g}",
        "ss_unet_lr": f"{rates.get('unet', job.optimizer.lr):g}",
        "ss_text_encoder_lr": f"{rates.get('text_encoder', job.optimizer.lr):g}",
        "ss_seed": str(job.train.seed),
        "ss_resolution": f"({width}, {height})",
        "ss_num_train_images": str(count) if count else "",
        "ss_tag_frequency": json.dumps({words: {words: count}}) if count else "",
        "ss_instance_token": job.subject.identifier,
        "ss_class_noun": job.subject.class_noun,
    }
