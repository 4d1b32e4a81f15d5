"""`builtin:tiny`: a Stable Diffusion model of a million random weights, for tests and dry runs.

The weights are a function of their names alone: the same bits on every machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.files import cache_root, new_folder
from dreambooth_plugins.model.folder.source import PARTS, Source

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = Path(__file__).parent / "configs" / "tiny"
RECIPE = 1
"""Raised when the same configuration would come to mean other weights."""
MERGES = 1000
"""Merges of CLIP's vocabulary the tokenizer knows: 1,514 tokens."""


def tiny_folder(*, build: bool) -> Path:
    """Return the model's folder in the user's cache; its bare configuration with `build=False`."""
    if not build:
        return CONFIG
    folder = cache_root() / "models" / f"tiny-{_digest(CONFIG)}"
    if not folder.is_dir():
        with new_folder(folder, once=True) as beside:
            build_tiny(CONFIG, beside)
    return folder


def _digest(config: Path) -> str:
    digest = hashlib.sha256(str(RECIPE).encode())
    for file in sorted(config.rglob("*.json")):
        data = json.loads(file.read_text(encoding="utf-8"))
        digest.update(json.dumps(data, sort_keys=True).encode())
    return digest.hexdigest()[:12]


def build_tiny(config: Path, dest: Path) -> None:
    """Write the model into the existing folder `dest`."""
    from dreambooth_plugins.model.folder.clip_vocabulary import clip_vocabulary
    from dreambooth_plugins.model.folder.loading import skeleton
    from dreambooth_plugins.model.folder.saving import file_key, save_weights
    from dreambooth_plugins.model.folder.tokenizer import make_tokenizer, save_tokenizer

    shutil.copytree(config, dest, dirs_exist_ok=True)
    for part in PARTS:
        shapes = skeleton(Source(config), part).state_dict()
        state = {file_key(part, name): _weights(part, name, t) for name, t in shapes.items()}
        save_weights(dest / part, part, state)
    save_tokenizer(make_tokenizer(config, *clip_vocabulary(MERGES)), dest / "tokenizer")


def _weights(part: str, name: str, like: Tensor) -> Tensor:
    """Uniform weights of variance 1 / fan-in; norms 1, biases 0.

    The VAE's log-variances are lowered, so that latents are means with a little noise.
    """
    import numpy as np
    import torch

    shape = tuple(like.shape)
    if len(shape) < 2:
        values = torch.full(shape, float("norm" in name and name.endswith("weight")))
        if name == "quant_conv.bias":
            values[shape[0] // 2 :] = -4.0
        return values
    seed = int.from_bytes(hashlib.sha256(f"{part}.{name}".encode()).digest()[:8], "big")
    uniform = np.random.Generator(np.random.PCG64(seed)).random(shape, dtype=np.float32)
    scale = np.float32(2.0 * np.sqrt(3.0 / np.prod(shape[1:])))
    return torch.from_numpy((uniform - np.float32(0.5)) * scale)
