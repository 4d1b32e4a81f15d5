"""Pictures with captions: drawings on a ground, a function of (seed, index) alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from dreambooth.helpers.random import numpy_generator
from emoji_recipe import grounds
from emoji_recipe.nouns import (
    ALSO,
    COLOURS,
    NOUNS,
    PATTERNS,
    POSITIONS,
    SCENES,
    STYLES,
    SYNONYMS,
    with_article,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emoji_recipe.drawings import Drawing

    Rng = np.random.Generator
    Pixels = np.ndarray[Any, np.dtype[np.uint8]]
    Floats = np.ndarray[Any, np.dtype[np.float32]]

EDGE = grounds.EDGE
HELD_OUT = 10_000_000
"""Compositions from this index on are never trained on."""


@dataclass(frozen=True)
class Facts:
    """What was drawn, in the words of the caption."""

    nouns: tuple[str, ...]
    """One noun or two."""
    ground: str
    """`solid`, `textured`, `gradient`, a pattern or a scene."""
    colours: tuple[str, ...]
    """The ground's named colours."""
    size: str | None
    position: str | None
    boxes: tuple[tuple[int, int, int], ...]
    """Left, top and edge of every drawing, in pixels."""


@dataclass(frozen=True)
class Composition:
    """One picture: uint8 [128, 128, 3], its caption and its facts."""

    pixels: Pixels
    caption: str
    facts: Facts


def compose(drawings: Sequence[Drawing], seed: int, index: int) -> Composition:
    """Draw composition `index`: nouns, then drawings, places, ground, light, words."""
    rng = numpy_generator(seed, "compose-128", index)
    by_noun = _by_noun(tuple(drawings))
    names = tuple(by_noun)
    if rng.random() < 0.15:
        nouns = tuple(names[i] for i in rng.permutation(len(names))[:2])
        return _compose(by_noun, nouns, rng)
    return _compose(by_noun, (names[int(rng.choice(len(names), p=_shares(names, by_noun)))],), rng)


def compose_of(drawings: Sequence[Drawing], noun: str, seed: int, index: int) -> Composition:
    """Draw composition `index` of one noun: real pictures to compare samples with."""
    rng = numpy_generator(seed, "compose-128-of", *noun.encode(), index)
    return _compose(_by_noun(tuple(drawings)), (noun,), rng)


@cache
def _by_noun(drawings: tuple[Drawing, ...]) -> dict[str, list[Drawing]]:
    made = {noun: [d for d in drawings if d.noun == noun] for noun in NOUNS}
    return {noun: group for noun, group in made.items() if group}


@cache
def _shares_of(counts: tuple[int, ...]) -> Any:
    shares = np.array(counts, np.float64) ** 0.5
    return shares / shares.sum()


def _shares(names: Sequence[str], by_noun: dict[str, list[Drawing]]) -> Any:
    """Return how often each noun is drawn: in proportion to the root of its drawings.

    A dog of twenty drawings needs more rows than a teapot of two, though not ten times as many.
    """
    return _shares_of(tuple(len(by_noun[name]) for name in names))


def _compose(by_noun: dict[str, list[Drawing]], nouns: tuple[str, ...], rng: Rng) -> Composition:
    drawn = [_pick(rng, by_noun[noun]) for noun in nouns]
    size, position, boxes = _places(rng, len(nouns))
    ground, colours, ground_words = _ground_words(rng)
    canvas = grounds.draw(ground, colours, rng)
    relief = rng.random() < 0.18
    shadow = rng.random() < 0.3
    subjects = []
    for item, box in zip(drawn, boxes, strict=True):
        picture, tint = _recoloured(item, rng)
        layer = _scaled(picture, box[2])
        if relief:
            layer = _lit(layer, rng)
        if shadow:
            _cast_shadow(canvas, layer, box, rng)
        paste(canvas, layer, box)
        subjects.append(_subject_words(rng, item, tint))
    soft = rng.random() < 0.15
    if soft:
        canvas = _soft_light(canvas, rng)
    style = "relief" if relief else drawn[0].set if len({d.set for d in drawn}) == 1 else None
    caption = _caption(rng, subjects, style, size, position, ground_words, soft)
    facts = Facts(nouns, ground, colours, size, position, boxes)
    return Composition(np.clip(canvas, 0, 255).round().astype(np.uint8), caption, facts)


def _pick(rng: Rng, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def _places(
    rng: Rng, count: int
) -> tuple[str | None, str | None, tuple[tuple[int, int, int], ...]]:
    """Draw the size and position words, and the boxes that go with them."""
    if count == 2:
        edges = [round(EDGE * rng.uniform(0.40, 0.52)) for _ in range(2)]
        gap = EDGE - sum(edges)
        left = max(0, round(gap * rng.uniform(0.1, 0.45)))
        right = EDGE - edges[1] - max(0, round(gap * rng.uniform(0.1, 0.45)))
        tops = [round((EDGE - edge) * rng.uniform(0.25, 0.75)) for edge in edges]
        return None, None, ((left, tops[0], edges[0]), (right, tops[1], edges[1]))
    draw = rng.random()
    size = "small" if draw < 0.06 else "big" if draw < 0.12 else None
    position = _pick(rng, tuple(POSITIONS)) if draw < 0.03 or 0.12 <= draw < 0.20 else None
    low, high = {"small": (0.36, 0.46), "big": (0.92, 1.0), None: (0.62, 0.90)}[size]
    if position and size is None:
        low, high = 0.46, 0.58
    edge = round(EDGE * rng.uniform(low, high))
    room = EDGE - edge
    # Without a position word the drawing stays near the middle.
    across, down = 0.5 + 0.35 * rng.uniform(-1, 1), 0.5 + 0.35 * rng.uniform(-1, 1)
    near = rng.uniform(0.0, 0.12)
    across = {"left": near, "right": 1 - near}.get(position or "", across)
    down = {"top": near, "bottom": 1 - near}.get(position or "", down)
    return size, position, ((round(room * across), round(room * down), edge),)


def _ground_words(rng: Rng) -> tuple[str, tuple[str, ...], str]:
    """Draw the kind of ground, its colours and the words for it."""
    draw = rng.random()
    first, second = (tuple(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:2])
    if draw < 0.54:
        short = rng.random() < 0.2
        words = f", {first} background" if short else f" on {with_article(first)} background"
        return "solid", (first,), words
    if draw < 0.64:
        return "textured", (first,), f" on a textured {first} background"
    if draw < 0.68:
        return "gradient", (first, second), f" on a background from {first} to {second}"
    if draw < 0.76:
        kind = _pick(rng, PATTERNS)
        joined = f"{first} with {second} dots" if kind == "dots" else f"{first} and {second} {kind}"
        return kind, (first, second), f" on {joined}"
    kind = _pick(rng, tuple(SCENES))
    return kind, (), f" {_pick(rng, SCENES[kind])}"


def _subject_words(rng: Rng, item: Drawing, tint: str | None) -> str:
    """Return the drawing's noun, or a narrower or another word for it, with its colour."""
    name = item.noun
    if item.name in ALSO and tint is None and rng.random() < 0.3:
        name = ALSO[item.name]
    elif item.noun in SYNONYMS and rng.random() < 0.25:
        name = SYNONYMS[item.noun]
    return f"{tint} {name}" if tint else name


def _caption(
    rng: Rng,
    subjects: Sequence[str],
    style: str | None,
    size: str | None,
    position: str | None,
    ground: str,
    soft: bool,
) -> str:
    """Put the words together; `a` before a vowel is kept at times, since templates write it."""
    phrases = [f"{size} {name}" if size else name for name in subjects]
    plain = rng.random() < 0.3
    said = [f"a {p}" if plain and not p.endswith("s") else with_article(p) for p in phrases]
    openings = ("a photo of ", "a photo of ", "a photo of ", "a picture of ", "")
    opening = openings[rng.integers(len(openings))]
    if style and rng.random() < 0.25:
        opening = f"{STYLES[style][0]} "
    joint = " next to " if rng.random() < 0.3 else " and "
    where = f" {POSITIONS[position]}" if position else ""
    light = " in soft light" if soft and rng.random() < 0.6 else ""
    told = ground if rng.random() < 0.88 else ""
    return opening + joint.join(said) + where + told + light


def _recoloured(item: Drawing, rng: Rng) -> tuple[Image.Image, str | None]:
    """Mirror half of the drawings; turn the hue of some, paint some in a named colour.

    A class whose members all look alike leaves prior preservation nothing to preserve.
    """
    picture = item.picture
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    draw = rng.random()
    if draw < 0.12:
        name = _pick(rng, tuple(COLOURS))
        return _changed(picture, lambda rgb, alpha: _painted(rgb, alpha, name)), name
    if draw < 0.40:
        matrix = _hue_matrix(rng.uniform(0.12, 0.88))
        return _changed(picture, lambda rgb, alpha: rgb @ matrix), None
    return picture, None


def _changed(picture: Image.Image, change: Any) -> Image.Image:
    """Return the `RGBa` picture with `change(rgb, alpha)` in place of its colours."""
    pixels = np.asarray(picture, dtype=np.float32)
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    # Premultiplied colours stay between nothing and their alpha.
    joined = np.concatenate([np.clip(change(rgb, alpha), 0, alpha), alpha], axis=2)
    return Image.frombytes("RGBa", picture.size, joined.round().astype(np.uint8).tobytes())


def _painted(rgb: Floats, alpha: Floats, name: str) -> Any:
    """Return the drawing in tones of a named colour: dark to colour to white, by luminance."""
    tone = np.array(COLOURS[name], np.float32) / 255
    light = (rgb @ np.array([0.30, 0.59, 0.11], np.float32))[..., None]
    share = light / np.maximum(alpha, 1)
    dark, bright = 0.25 + 1.1 * share, np.clip(2 * share - 1.1, 0, 1)
    return (np.clip(tone * dark, 0, 1) * (1 - 0.8 * bright) + 0.8 * bright) * alpha


def _hue_matrix(turn: float) -> Floats:
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


def _scaled(picture: Image.Image, edge: int) -> Floats:
    """Return the premultiplied picture as floats [edge, edge, 4] in 0..255."""
    small = picture.resize((edge, edge), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float32)


def _blurred(plane_hw: Floats, radius: float) -> Floats:
    made = Image.fromarray(plane_hw.round().astype(np.uint8))
    return np.asarray(made.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)


def _lit(layer: Floats, rng: Rng) -> Floats:
    """Light the drawing as if it were raised: a height from its blurred outline and its tones.

    Lambert's law for the body, Blinn and Phong's half vector for the shine.
    """
    alpha = layer[..., 3]
    height = 1.6 * _blurred(alpha, layer.shape[0] / 11) + 0.7 * _blurred(layer[..., 1], 1.5)
    down, across = np.gradient(height / 16)
    depth = np.sqrt(down**2 + across**2 + 1)
    angle = rng.uniform(-0.9, 0.9)
    light = np.array([-0.75 * np.cos(angle), 0.75 * np.sin(angle), 0.66], np.float32)
    facing = (-down * light[0] - across * light[1] + light[2]) / depth / np.linalg.norm(light)
    half = light / np.linalg.norm(light) + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    shine = np.clip((-down * half[0] - across * half[1] + half[2]) / depth, 0, 1) ** 28
    shade = 0.55 + 0.65 * np.clip(facing, 0, 1)
    rgb = layer[..., :3] * shade[..., None] + 70 * (shine * alpha / 255)[..., None]
    return np.concatenate([np.clip(rgb, 0, layer[..., 3:]), layer[..., 3:]], axis=2)


def _cast_shadow(canvas: Floats, layer: Floats, box: tuple[int, int, int], rng: Rng) -> None:
    """Darken the ground under a blurred, moved outline of the drawing, in place."""
    edge = box[2]
    moved = (int(rng.integers(2, 8)), int(rng.integers(-6, 7)))
    soft = Image.new("L", (EDGE, EDGE))
    soft.paste(
        Image.fromarray(layer[..., 3].round().astype(np.uint8)),
        (box[0] + moved[1], box[1] + moved[0]),
    )
    cover = np.asarray(soft.filter(ImageFilter.GaussianBlur(edge / 20)), dtype=np.float32) / 255
    canvas *= 1 - float(rng.uniform(0.2, 0.45)) * cover[..., None]


def _soft_light(canvas: Floats, rng: Rng) -> Floats:
    """Return the picture under a light that falls off from one side, by at most a third."""
    row, column = rng.uniform(-40, 60), rng.uniform(-20, EDGE + 20)
    rows, columns = np.ogrid[0:EDGE, 0:EDGE]
    far = np.hypot(rows - row, columns - column) / (1.5 * EDGE)
    lit: Floats = canvas * (1.12 - 0.42 * np.clip(far, 0, 1)).astype(np.float32)[..., None]
    return lit


def paste(canvas: Floats, layer: Floats, box: tuple[int, int, int]) -> None:
    """Draw a premultiplied layer [edge, edge, 4] over the canvas at its box, in place."""
    left, top, edge = box
    region = canvas[top : top + edge, left : left + edge]
    region *= 1 - layer[..., 3:] / 255
    region += layer[..., :3]
