"""Pictures held against the concepts of CompVis' safety checker."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import CLIPConfig

from dreambooth.errors import RunError
from dreambooth.files import read_object
from dreambooth_plugins.common.libraries import diffusers
from dreambooth_plugins.common.processing import CLIP, Processor
from dreambooth_plugins.common.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

EXTRA = 0.01
"""Added to every concept where a picture needs special care."""


@lru_cache(maxsize=1)
def opened(folder: Path, device: str) -> Concepts:
    """Return the checker of a folder; the newest one stays in memory."""
    with quiet():
        return Concepts(folder, device)


class Concepts:
    """CLIP's picture encoder, and what is compared with its answers."""

    def __init__(self, folder: Path, device: str) -> None:
        config = CLIPConfig.from_pretrained(folder, local_files_only=True)
        cls: Any = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker
        with torch.random.fork_rng(devices=[]):  # what it draws for its weights is not wanted
            self._net: Any = cls(config)
        self._net.load_state_dict(_weights(folder, set(self._net.state_dict())))
        self._net.float().eval().to(device)
        self._process = Processor(_processing(folder, config.vision_config.image_size))
        self._device = device

    def scores(self, images: Sequence[Image]) -> list[float]:
        """Return max over concepts of cos(picture, concept) - threshold (+ .01), to 3 decimals."""
        found = []
        for image in images:  # one by one: a score does not depend on the pictures beside it
            pixels = self._process([image]).to(self._device)
            with torch.no_grad():
                embeds = self._net.visual_projection(self._net.vision_model(pixels)[1])
            special = over(embeds, self._net.special_care_embeds)
            care = (special - self._net.special_care_embeds_weights).round(decimals=3) > 0
            scores = over(embeds, self._net.concept_embeds) - self._net.concept_embeds_weights
            scores = (scores + EXTRA * bool(care.any())).round(decimals=3)
            found.append(float(scores.max()))
        return found


def over(embeds: Tensor, concepts: Tensor) -> Tensor:
    """Return the cosines of [1, D] with [K, D], as [1, K]."""
    return normalize(embeds) @ normalize(concepts).T


def _weights(folder: Path, wanted: set[str]) -> dict[str, Tensor]:
    """Return the stored weights under the names of today's modules.

    Newer versions of transformers have left out one `vision_model.` of the older names.
    """
    stored: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if ".fp16." not in path.name or not any(folder.glob("model.safetensors")):
            stored |= load_file(path)
    twice, once = "vision_model.vision_model.", "vision_model."
    nested = any(name.startswith(twice) for name in wanted)
    found = {}
    for name, tensor in stored.items():
        plain = name.replace(twice, once, 1)
        inner = nested and plain.startswith(once)
        found[twice + plain.removeprefix(once) if inner else plain] = tensor
    if lacking := sorted(wanted - found.keys()):
        raise RunError(
            f"{folder} is no whole safety checker: {lacking[0]} is missing",
            "take the folder safety_checker of Stable Diffusion 1.x",
        )
    return {name: found[name] for name in wanted}


def _processing(folder: Path, side: int) -> dict[str, Any]:
    """Return how pictures are made ready: as the files beside the checker say, or as for CLIP."""
    beside = folder.parent / "feature_extractor"
    for place in (folder, beside):
        if (place / "preprocessor_config.json").is_file():
            return read_object(place / "preprocessor_config.json")
    size = {"height": side, "width": side}
    return {**CLIP, "size": {"shortest_edge": side}, "crop_size": size}
