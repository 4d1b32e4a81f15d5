"""BLIP and Florence-2 in memory: a picture in, a caption out. One at a time, nothing drawn by lot:
a caption does not depend on the pictures beside it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    Florence2ForConditionalGeneration,
)

from dreambooth.files import read_object
from dreambooth_plugins.common.processing import Processor
from dreambooth_plugins.common.quiet import quiet

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

ASKED = {
    "sentence": "What does the image describe?",
    "detailed": "Describe in detail what is shown in the image.",
    "paragraph": "Describe with a paragraph what is shown in the image.",
}
"""What Florence-2 was trained to be asked for captions (its <CAPTION> tasks)."""


@lru_cache(maxsize=1)
def opened(net: Any, folder: Path, device: str) -> Any:
    """Return a network of a folder; the newest one stays in memory."""
    with quiet():
        return net(folder, device)


class _Net:
    """What both share: weights, tokenizer, pictures."""

    def __init__(self, cls: Any, folder: Path, device: str) -> None:
        self._process = Processor(read_object(folder / "preprocessor_config.json"))
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._net: Any = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        self._net.eval().to(device)
        self._device = device

    def _said(self, image: Image, max_tokens: int, beams: int, **given: Any) -> str:
        options = {"do_sample": False, "num_beams": beams, "max_new_tokens": max_tokens}
        pixels = self._process([image]).to(self._device)
        with torch.no_grad(), quiet():
            ids = self._net.generate(pixel_values=pixels, **given, **options)
        return str(self._tokenizer.decode(ids[0], skip_special_tokens=True)).strip()


class BlipNet(_Net):
    """BLIP with its text decoder."""

    def __init__(self, folder: Path, device: str) -> None:
        super().__init__(BlipForConditionalGeneration, folder, device)

    def caption(self, image: Image, prompt: str, max_tokens: int, beams: int) -> str:
        """Return the likeliest caption that begins with `prompt`."""
        if not prompt:
            return self._said(image, max_tokens, beams)
        ids = self._tokenizer(prompt, return_tensors="pt").input_ids.to(self._device)
        return self._said(
            image, max_tokens, beams, input_ids=ids, attention_mask=torch.ones_like(ids)
        )


class FlorenceNet(_Net):
    """Florence-2: places for the picture's features, then a question."""

    def __init__(self, folder: Path, device: str) -> None:
        super().__init__(Florence2ForConditionalGeneration, folder, device)

    def caption(self, image: Image, detail: str, max_tokens: int, beams: int) -> str:
        """Return the likeliest caption of one sentence, or more."""
        pixels = self._process([image]).to(self._device)
        with torch.no_grad():
            places = self._net.get_image_features(pixels).pooler_output.shape[1]
        text = f"{self._tokenizer.bos_token}{ASKED[detail]}{self._tokenizer.eos_token}"
        words = self._tokenizer(text, add_special_tokens=False).input_ids
        ids = torch.tensor([[self._net.config.image_token_id] * places + words])
        ids = ids.to(self._device)
        return self._said(
            image, max_tokens, beams, input_ids=ids, attention_mask=torch.ones_like(ids)
        )
