"""Pictures with captions: a drawing on a background, a function of (seed, index) alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dreambooth.engine.random import numpy_generator
from dreambooth_plugins.base_emoji import backgrounds
from dreambooth_plugins.base_emoji.nouns import (
    COLOURS,
    NOUNS,
    PATTERNS,
    POSITIONS,
    SCENES,
    with_article,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth_plugins.base_emoji.sprites import Sprite

    Rng = np.random.Generator
    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

EDGE = 64
HELD_OUT = 10_000_000
"""Compositions from this index on are never trained on."""


@dataclass(frozen=True)
class Facts:
    """What was drawn, in the words of the caption."""

    noun: str
    background: str
    """`solid`, a pattern or a scene."""
    colours: tuple[str, ...]
    size: str | None
    position: str | None
    box: tuple[int, int, int]
    """Left, top and edge of the drawing, in pixels."""


@dataclass(frozen=True)
class Composition:
    """One picture: uint8 [64, 64, 3], its caption and its facts."""

    pixels: Pixels
    caption: str
    facts: Facts


def compose(sprites: Sequence[Sprite], seed: int, index: int) -> Composition:
    """Draw composition `index`: class noun, then drawing, colours, place and background."""
    rng = numpy_generator(seed, "compose", index)
    nouns = tuple(NOUNS)
    noun = nouns[rng.integers(len(nouns))]
    sprite = _pick(rng, _by_noun(tuple(sprites))[noun])
    size, position, box = _place(rng)
    kind, colours, words = _background_words(rng)
    canvas = backgrounds.draw(kind, colours, rng)
    paste(canvas, _recoloured(sprite, rng), box)
    name = sprite.name if rng.random() < 0.1 else noun
    caption = _caption(rng, name, size, position, words if rng.random() < 0.85 else None)
    facts = Facts(noun, kind, colours, size, position, box)
    return Composition(canvas, caption, facts)


def _pick(rng: Rng, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


@cache
def _by_noun(sprites: tuple[Sprite, ...]) -> dict[str, list[Sprite]]:
    return {noun: [s for s in sprites if s.noun == noun] for noun in NOUNS}


def _place(rng: Rng) -> tuple[str | None, str | None, tuple[int, int, int]]:
    """Draw the size and position words, and the box that goes with them."""
    draw = rng.random()
    size = "small" if draw < 0.08 else "big" if draw < 0.16 else None
    position = _pick(rng, tuple(POSITIONS)) if draw < 0.04 or 0.16 <= draw < 0.26 else None
    low, high = {"small": (0.40, 0.50), "big": (0.92, 1.0), None: (0.66, 0.92)}[size]
    if position and size is None:
        low, high = 0.50, 0.60
    edge = round(EDGE * rng.uniform(low, high))
    room = EDGE - edge
    # Without a position word the drawing stays near the middle.
    across, down = 0.5 + 0.35 * rng.uniform(-1, 1), 0.5 + 0.35 * rng.uniform(-1, 1)
    near = rng.uniform(0.0, 0.12)
    across = {"left": near, "right": 1 - near}.get(position or "", across)
    down = {"top": near, "bottom": 1 - near}.get(position or "", down)
    return size, position, (round(room * across), round(room * down), edge)


def _background_words(rng: Rng) -> tuple[str, tuple[str, ...], str]:
    """Draw the kind of background, its colours and the words for it."""
    draw = rng.random()
    first, second = (tuple(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:2])
    if draw < 0.70:
        short = rng.random() < 0.25
        words = f", {first} background" if short else f" on {with_article(first)} background"
        return "solid", (first,), words
    if draw < 0.82:
        kind = _pick(rng, PATTERNS)
        joined = f"{first} with {second} dots" if kind == "dots" else f"{first} and {second} {kind}"
        return kind, (first, second), f" on {joined}"
    kind = _pick(rng, tuple(SCENES))
    return kind, (), f" {_pick(rng, SCENES[kind])}"


def _caption(rng: Rng, name: str, size: str | None, position: str | None, words: str | None) -> str:
    """Put the words together; `a` before a vowel is kept at times, since templates write it."""
    phrase = f"{size} {name}" if size else name
    subject = f"a {phrase}" if rng.random() < 0.4 else with_article(phrase)
    opening = ("a photo of ", "a photo of ", "a photo of ", "a picture of ", "")[rng.integers(5)]
    where = f" {POSITIONS[position]}" if position else ""
    return opening + subject + where + (words or "")


def _recoloured(sprite: Sprite, rng: Rng) -> Image.Image:
    """Mirror half of the drawings and turn the hue of some, so that a class has many colours."""
    picture = sprite.picture
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.4:
        pixels = np.asarray(picture, dtype=np.float32)
        alpha = pixels[..., 3:]
        turned = pixels[..., :3] @ _hue_matrix(rng.uniform(0.15, 0.85))
        # Premultiplied colours stay between nothing and their alpha.
        turned = np.clip(turned, 0, alpha)
        joined = np.concatenate([turned, alpha], axis=2).round().astype(np.uint8)
        picture = Image.frombytes("RGBa", picture.size, joined.tobytes())
    return picture


def _hue_matrix(turn: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the rotation about the grey axis by `turn` of a full circle (Rodrigues' formula)."""
    angle = 2 * np.pi * turn
    cos, sin = np.cos(angle), np.sin(angle) / np.sqrt(3)
    around = (1 - cos) / 3
    rows = [
        [cos + around, around - sin, around + sin],
        [around + sin, cos + around, around - sin],
        [around - sin, around + sin, cos + around],
    ]
    return np.array(rows, dtype=np.float32).T


def paste(canvas: Pixels, picture: Image.Image, box: tuple[int, int, int]) -> None:
    """Draw the premultiplied picture over the canvas, scaled to the box, in place."""
    left, top, edge = box
    small = picture.resize((edge, edge), Image.Resampling.LANCZOS)
    over = np.asarray(small, dtype=np.float32)
    region = canvas[top : top + edge, left : left + edge]
    mixed = over[..., :3] + region * (1 - over[..., 3:] / 255)
    region[:] = np.clip(mixed, 0, 255).round().astype(np.uint8)
