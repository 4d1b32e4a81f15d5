"""Pictures with the statistics of photographs, so that the autoencoder carries photographs too.

Dead leaves (Lee, Mumford and Huang, "Occlusion models for natural images", 2001) with 1/f grain,
and random crops of the free photographs in the scikit-image wheel.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dreambooth.errors import RunError
from dreambooth.helpers.random import numpy_generator
from emoji_recipe.grounds import EDGE

if TYPE_CHECKING:
    Rng = np.random.Generator
    Pixels = np.ndarray[Any, np.dtype[np.uint8]]
    Floats = np.ndarray[Any, np.dtype[np.float32]]

PHOTOGRAPHS: dict[str, str] = {
    "astronaut.png": "NASA, public domain",
    "brick.png": "CC0",
    "camera.png": "Lav Varshney, CC0",
    "chelsea.png": "Stefan van der Walt, CC0",
    "clock_motion.png": "Stefan van der Walt, public domain",
    "coffee.png": "Rachel Michetti, CC0",
    "grass.png": "CC0",
    "gravel.png": "CC0",
    "hubble_deep_field.jpg": "NASA, public domain",
    "retina.jpg": "CC0",
    "rocket.jpg": "SpaceX, public domain",
}
"""Files of scikit-image's `data` folder, author and licence by its documentation."""

_SHARES = np.array([3, 1, 2, 4, 1, 4, 1, 1, 1, 1, 2]) / 21
"""Scenes are drawn more often than textures."""


def dead_leaves(seed: int, index: int) -> Pixels:
    """Return overlapping shapes with power-law sizes and 1/f grain: uint8 [128, 128, 3]."""
    rng = numpy_generator(seed, "dead-leaves", index)
    canvas = Image.new("RGB", (EDGE, EDGE), tuple(int(c) for c in rng.integers(0, 256, 3)))
    pen = ImageDraw.Draw(canvas)
    palette = rng.integers(0, 256, (int(rng.integers(3, 9)), 3))
    # Photographs are less colourful than palettes drawn at random.
    soft = rng.uniform(0.1, 1)
    palette = soft * palette + (1 - soft) * palette.mean(axis=1, keepdims=True)
    # Radii with density r^-3 between 2 and 60 pixels, the largest drawn first now and then.
    radii = 1 / np.sqrt(rng.uniform(1 / 60**2, 1 / 2**2, int(rng.integers(60, 260))))
    for radius in radii if rng.random() < 0.5 else np.sort(radii)[::-1]:
        row, column = rng.uniform(-10, EDGE + 10, 2)
        tone = palette[rng.integers(len(palette))] + rng.integers(-24, 25, 3)
        fill = tuple(int(c) for c in np.clip(tone, 0, 255))
        box = (column - radius, row - radius * rng.uniform(0.4, 1), column + radius, row + radius)
        if rng.random() < 0.6:
            pen.ellipse(box, fill)
        else:
            turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            rows, columns = row + radius * np.sin(turns), column + radius * np.cos(turns)
            pen.polygon(list(zip(columns.tolist(), rows.tolist(), strict=True)), fill)
    if rng.random() < 0.6:
        canvas = canvas.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 2.2))))
    grain = one_over_f(rng, float(rng.uniform(0.6, 1.5))) * float(rng.uniform(2, 22))
    lit = np.asarray(canvas, np.float32) + grain[..., None] * rng.uniform(0.7, 1.1, 3)
    return np.clip(lit, 0, 255).round().astype(np.uint8)


def one_over_f(rng: Rng, exponent: float) -> Floats:
    """Return noise whose amplitude falls with the frequency's power, [128, 128], of deviation 1."""
    down, across = np.fft.fftfreq(EDGE)[:, None], np.fft.rfftfreq(EDGE)[None]
    frequency = np.hypot(down, across)
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((EDGE, EDGE))) / frequency**exponent
    spectrum[0, 0] = 0
    made = np.fft.irfft2(spectrum, s=(EDGE, EDGE))
    scaled: Floats = (made / made.std()).astype(np.float32)
    return scaled


@cache
def photographs() -> tuple[Image.Image, ...]:
    """Return the photographs, RGB.

    Raises:
        RunError: scikit-image is not installed.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise RunError("scikit-image is not installed", "pip install scikit-image (its wheel).")
    folder = Path(spec.origin).parent / "data"
    return tuple(Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS)


def photograph(seed: int, index: int) -> Pixels:
    """Return a random crop of a photograph at a random scale: uint8 [128, 128, 3]."""
    rng = numpy_generator(seed, "photograph", index)
    source = photographs()[int(rng.choice(len(PHOTOGRAPHS), p=_SHARES))]
    edge = int(rng.uniform(0.35, 1.0) * min(source.size))
    left = int(rng.integers(source.width - edge + 1))
    top = int(rng.integers(source.height - edge + 1))
    box = (left, top, left + edge, top + edge)
    cut = source.resize((EDGE, EDGE), Image.Resampling.LANCZOS, box)
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.25:
        cut = cut.transpose(Image.Transpose.ROTATE_90)
    pixels: Any = np.asarray(cut, np.float32)
    # Other light: a gain a channel, and a gamma.
    gained = np.clip(pixels / 255 * rng.uniform(0.8, 1.2, 3), 0, 1)
    pixels = 255 * gained ** rng.uniform(0.75, 1.35)
    made: Pixels = np.clip(pixels, 0, 255).round().astype(np.uint8)
    return made
