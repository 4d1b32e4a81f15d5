"""What U2-Net is given and answers."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dreambooth.errors import RunError
from dreambooth_plugins.common.onnx import open_session

if TYPE_CHECKING:
    from pathlib import Path

    Mask = np.ndarray[Any, np.dtype[np.float32]]

SIDE = 320
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's."""


@lru_cache(maxsize=1)
def opened(path: Path) -> Any:
    """Return the network of a file; the newest one stays in memory."""
    return open_session(path, "masks", f"--model {path}")


def subject_mask(session: Any, image: Image.Image) -> Mask:
    """Return a picture's mask [height, width] float32: 0 where least stands out, 1 where most does.

    The picture is squeezed to 320 x 320 and divided by its brightest value, as the network was
    trained; its first output is stretched to 0..1. A picture of one colour has no subject: zeros.
    """
    square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(square, dtype=np.float32)
    scaled = pixels / max(float(pixels.max()), 1e-6)
    given = (scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    batch = np.ascontiguousarray(given.transpose(2, 0, 1)[None])
    answer = np.asarray(session.run(None, {session.get_inputs()[0].name: batch})[0], np.float32)
    if answer.shape != (1, 1, SIDE, SIDE):
        raise RunError(
            f"the network answers with {list(answer.shape)}, not with [1, 1, {SIDE}, {SIDE}]",
            "it is no U2-Net: name u2net.onnx or u2netp.onnx",
        )
    low, high = float(answer.min()), float(answer.max())
    if not high > low:
        return np.zeros((image.height, image.width), np.float32)
    mask = Image.fromarray((answer[0, 0] - low) / (high - low))
    whole = mask.resize(image.size, Image.Resampling.BILINEAR)
    return np.asarray(whole, dtype=np.float32).clip(0.0, 1.0)
