"""kohya's layout of a LoRA, which AUTOMATIC1111, Forge and ComfyUI read.

`lora_unet_<module>.lora_down.weight` with underscores for dots, an `.alpha` a module, and `ss_*`
metadata.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dreambooth.helpers.naming import base_name
from dreambooth.interfaces import AdapterTensors
from dreambooth_plugins.formats.lora import lycoris
from dreambooth_plugins.formats.lora.low_rank import FACTORS, adapters, low_rank
from dreambooth_plugins.formats.model_spec import has_zero_terminal_snr, model_spec
from dreambooth_plugins.formats.original.names import unet_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth import Job
    from dreambooth.interfaces import Artifact, LoadedModel, ModelInfo
    from dreambooth_plugins.formats.lora.low_rank import LowRank

LAYOUT = "kohya"
PREFIXES = {
    "lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
}  # fmt: skip
"""What the names of a part's modules begin with. A model of two text encoders has the numbered
names; one of a single encoder has the plain one, and the numbered one is read as the same."""
_NAME = re.compile(
    r"^(?P<module>(?P<part>lora_(?:unet|te|te1|te2))_[^.]+)"
    rf"\.(?P<role>lora_down|lora_up|lora_mid|alpha|dora_scale|{FACTORS})(\.weight)?$"
)
_ROLES = {"lora_down": "down", "lora_up": "up", "lora_mid": "mid", "dora_scale": "magnitude"}


def is_kohya(names: Iterable[str]) -> bool:
    """Say whether a file's tensors are named this way."""
    return any(name.startswith("lora_") for name in names)


def place(name: str) -> tuple[tuple[str, str], str] | None:
    """Return (part, module by its name here) and role of a tensor; None where it is no LoRA's.

    Roles are `down`, `up`, `mid`, `alpha`, `magnitude`, and the names of LoHa's and LoKr's factors.
    """
    match = _NAME.match(name)
    if match is None:
        return None
    return (PREFIXES[match["part"]], match["module"]), _ROLES.get(match["role"], match["role"])


def module_names(
    files: Mapping[str, str], configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return kohya's names of modules, given diffusers' (`unet.down_blocks.0...`).

    `configs` holds the config.json of every part. His scripts train SD 1.x and 2.x in diffusers'
    UNet, and SDXL in Stability's own, whose blocks are numbered through all levels.
    """
    two = len([part for part in configs if part.startswith("text_encoder")]) > 1
    prefixes = {part: prefix for prefix, part in PREFIXES.items() if two or prefix != "lora_te1"}
    numbered = unet_names(configs["unet"]) if two else None
    out = {}
    for here, there in files.items():
        part, name = there.split(".", 1)
        if numbered and part == "unet":
            name = numbered(f"{name}.weight").removesuffix(".weight")
        out[here] = f"{prefixes[part]}_{name.replace('.', '_')}"
    return out


def read_names(names: Mapping[str, str], plain: Mapping[str, str]) -> dict[str, str]:
    """Return the qualified name in memory of each name a module may have in a file.

    `names` are kohya's and `plain` diffusers' names of modules, by qualified name: those of
    diffusers' blocks are in use for SDXL as well, and `lora_te1` for the only encoder.
    """
    own = {there: here for here, there in names.items()}
    dotted = {f"lora_{there}".replace(".", "_"): here for here, there in plain.items()}
    numbered = {re.sub("^lora_te_", "lora_te1_", n): here for n, here in own.items()}
    return {**dotted, **numbered, **own}


def write(
    artifact: Artifact,
    model: LoadedModel,
    path: Path,
    job: Job | None,
    dtype: str,
    layout: str = LAYOUT,
) -> None:
    """Write each module's factors and its alpha, and what the run was; `layout` names them."""
    import torch

    from dreambooth_plugins.common.tensors import write_tensors

    pairs = with_one_alpha(low_rank(artifact))
    items = adapters(pairs, alphas=True)
    for product in lycoris.factors(artifact):
        factors, alpha = lycoris.as_read(product)
        own = {**factors, "alpha": torch.tensor(alpha)}
        items.append(AdapterTensors(product.part, product.module, own))
    tensors = model.adapter_file(layout, items)
    write_tensors(path, tensors, metadata(artifact, pairs, model.info, job), dtype)


def file_tensors(names: Mapping[str, str], adapters: Iterable[AdapterTensors]) -> dict[str, Tensor]:
    """Return adapters under kohya's names: `lora_down`, `lora_up`, `alpha`; of LoHa and LoKr the
    factors by LyCORIS' names. `names` maps qualified names of modules to those in files."""
    called = {role: name for name, role in _ROLES.items()}
    tensors: dict[str, Tensor] = {}
    for adapter in adapters:
        at = names[f"{adapter.part}.{adapter.module}"]
        for role, tensor in adapter.tensors.items():
            name = called.get(role, role)
            weight = ".weight" if role in ("down", "up", "mid") else ""
            tensors[f"{at}.{name}{weight}"] = tensor
    return tensors


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
            out.append(replace(adapter, up=up, alpha=common, scale=common / adapter.rank))
    return out


def _plain_alpha(adapter: LowRank) -> float:
    """Return the alpha that gives the scale by the rule alpha / rank."""
    alpha = adapter.scale * adapter.rank
    return adapter.alpha if math.isclose(alpha, adapter.alpha) else alpha


def metadata(
    artifact: Artifact, adapters: list[LowRank], info: ModelInfo, job: Job | None
) -> dict[str, str]:
    """Return what programs show of a LoRA: texts all, as safetensors wants them.

    No times and no paths, so that equal runs give equal files.
    """
    products = lycoris.factors(artifact)
    ranks = {a.rank for a in adapters} | {p.rank for p in products}
    alphas = {a.alpha for a in adapters} | {p.scale * p.rank for p in products}
    kinds = {a["method"]["kind"] for a in artifact.metadata["adapters"].values()}
    algorithms = sorted(kinds & {*lycoris.METHODS})
    version = info.names.get(LAYOUT, info.family)
    # Kohya's scripts mark v in the names of SD 1.x and 2.x alone.
    v_model = info.prediction == "v_prediction" and version.startswith("sd_v")
    out: dict[str, Any] = {
        "ss_network_module": "lycoris.kohya" if algorithms else "networks.lora",
        "ss_network_args": json.dumps({"algo": algorithms[0]}) if len(algorithms) == 1 else "",
        "ss_network_dim": f"{ranks.pop()}" if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
        "ss_base_model_version": version + ("_v" if v_model else ""),
        "ss_v2": str(version == "sd_v2"),
        "ss_steps": str(artifact.metadata.get("steps", "")),
        **model_spec(info, job, "/lora"),
    }
    if job is not None:
        out |= _job_metadata(job, artifact, info)
    return {name: text for name, text in out.items() if text}


def _job_metadata(job: Job, artifact: Artifact, info: ModelInfo) -> dict[str, Any]:
    words = f"{job.subject.identifier} {job.subject.class_noun}"
    height, width = job.data.size
    rates = getattr(job.freezing, "lr", {})
    count = artifact.metadata.get("images", 0)
    captions = artifact.metadata.get("captions") or ({words: count} if count else {})
    folder = f"1_{words}"
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
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": 1, "img_count": count}})
        if count
        else "",
        "ss_tag_frequency": json.dumps({folder: tag_frequency(captions)}) if captions else "",
        "ss_zero_terminal_snr": str(has_zero_terminal_snr(job, info)),
        "ss_instance_token": job.subject.identifier,
        "ss_class_noun": job.subject.class_noun,
    }


def tag_frequency(captions: Mapping[str, int]) -> dict[str, int]:
    """Return how many pictures have each tag, by the rule of kohya's scripts.

    A caption is split at commas; tags are in lower case. `captions` is caption -> pictures.
    """
    found: dict[str, int] = {}
    for caption, count in captions.items():
        for tag in (part.strip().lower() for part in caption.split(",")):
            if tag:
                found[tag] = found.get(tag, 0) + count
    return found
