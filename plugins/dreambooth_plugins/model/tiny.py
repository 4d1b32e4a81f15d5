"""Tiny models of random weights, for tests and dry runs: `builtin:tiny`,
`builtin:tiny-sd2`, `builtin:tiny-sdxl`.

The weights are a function of their names alone: the same bits on every machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.files import cache_root, new_folder
from dreambooth_plugins.model import parts_of
from dreambooth_plugins.model.folder.source import Source

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_plugins.model.folder.part import Part

CONFIGS = Path(__file__).parent / "configs"
MODELS = {
    "tiny": parts_of.STABLE_DIFFUSION,
    "tiny-sd2": parts_of.STABLE_DIFFUSION,
    "tiny-sdxl": parts_of.SDXL,
}
"""Name -> parts: Stable Diffusion 1.x, 2.x (v-prediction), SDXL."""
RECIPE = 1
"""Raised when the same configuration would come to mean other weights."""
MERGES = 1000
"""Merges of CLIP's vocabulary the tokenizer knows: 1,514 tokens."""


def tiny_folder(name: str = "tiny", *, build: bool) -> Path:
    """Return a model's folder in the user's cache; its bare configuration with `build=False`."""
    config = CONFIGS / name
    if not build:
        return config
    folder = cache_root() / "models" / f"{name}-{_digest(config)}"
    if not folder.is_dir():
        with new_folder(folder, once=True) as beside:
            build_tiny(config, MODELS[name], beside)
    return folder


def _digest(config: Path) -> str:
    digest = hashlib.sha256(str(RECIPE).encode())
    for file in sorted(config.rglob("*.json")):
        data = json.loads(file.read_text(encoding="utf-8"))
        digest.update(json.dumps(data, sort_keys=True).encode())
    return digest.hexdigest()[:12]


def build_tiny(config: Path, parts: tuple[Part, ...], dest: Path) -> None:
    """Write the model into the existing folder `dest`."""
    from dreambooth_plugins.model.folder.clip_vocabulary import clip_vocabulary
    from dreambooth_plugins.model.folder.loading import skeleton
    from dreambooth_plugins.model.folder.saving import save_weights
    from dreambooth_plugins.model.folder.tokenizer import make_tokenizer, save_tokenizer

    shutil.copytree(config, dest, dirs_exist_ok=True)
    source = Source(parts, config)
    for part in parts:
        shapes = skeleton(source, part.name).state_dict()
        state = {part.file_key(name): _weights(part, name, t) for name, t in shapes.items()}
        save_weights(dest / part.name, part, state)
        if part.tokenizer:
            tokenizer = make_tokenizer(config / part.tokenizer, *clip_vocabulary(MERGES))
            save_tokenizer(tokenizer, dest / part.tokenizer)


def _weights(part: Part, name: str, like: Tensor) -> Tensor:
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
    seed = int.from_bytes(hashlib.sha256(f"{part.name}.{name}".encode()).digest()[:8], "big")
    uniform = np.random.Generator(np.random.PCG64(seed)).random(shape, dtype=np.float32)
    scale = np.float32(2.0 * np.sqrt(3.0 / np.prod(shape[1:])))
    return torch.from_numpy((uniform - np.float32(0.5)) * scale)
