"""The drawn backgrounds: plain colours, patterns of two colours, four scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dreambooth_plugins.base_emoji.nouns import COLOURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    Rng = np.random.Generator
    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

EDGE = 64
_ROWS, _COLUMNS = np.mgrid[0:EDGE, 0:EDGE]


def draw(kind: str, colours: Sequence[str], rng: Rng) -> Pixels:
    """Return a background, uint8 [64, 64, 3]: `solid`, a pattern's or a scene's name."""
    tones = [_jittered(COLOURS[name], rng) for name in colours]
    if kind == "solid":
        return np.broadcast_to(tones[0], (EDGE, EDGE, 3)).copy()
    if kind in {"stripes", "dots", "checks"}:
        mask = {"stripes": _stripes, "dots": _dots, "checks": _checks}[kind](rng)
        return np.where(mask[..., None], tones[1], tones[0]).astype(np.uint8)
    scene = {"grass": _grass, "snow": _snow, "night": _night, "beach": _beach}[kind]
    return scene(rng)


def _jittered(colour: Sequence[int], rng: Rng) -> Pixels:
    moved = np.array(colour) + rng.integers(-8, 9, 3)
    return np.clip(moved, 0, 255).astype(np.uint8)


def _stripes(rng: Rng) -> Any:
    along = (_ROWS, _COLUMNS, _ROWS + _COLUMNS)[rng.integers(3)]
    return (along + rng.integers(16)) // 8 % 2 == 1


def _dots(rng: Rng) -> Any:
    down, across = (_ROWS + rng.integers(16)) % 16 - 7.5, (_COLUMNS + rng.integers(16)) % 16 - 7.5
    return down**2 + across**2 < 4.2**2


def _checks(rng: Rng) -> Any:
    return ((_ROWS + rng.integers(16)) // 8 + (_COLUMNS + rng.integers(16)) // 8) % 2 == 1


def _layers(rng: Rng, *layers: tuple[int, tuple[int, int, int]]) -> Pixels:
    """Paint bands from the top: each begins at a row (moved a little) and goes to the bottom."""
    canvas = np.zeros((EDGE, EDGE, 3), np.uint8)
    for start, colour in layers:
        row = start + int(rng.integers(-4, 5)) if start else 0
        canvas[row:] = _jittered(colour, rng)
    return canvas


def _scatter(canvas: Pixels, rng: Rng, count: int, top: int, colour: Any, height: int = 1) -> None:
    """Put `count` marks of one pixel's width at or below row `top`, in place."""
    for row, column in zip(
        rng.integers(top, EDGE, count), rng.integers(0, EDGE, count), strict=True
    ):
        canvas[row : row + height, column] = colour


def _grass(rng: Rng) -> Pixels:
    canvas = _layers(rng, (0, (150, 210, 245)), (34, (95, 180, 75)))
    _scatter(canvas, rng, 90, 40, (60, 140, 50), height=3)
    return canvas


def _snow(rng: Rng) -> Pixels:
    canvas = _layers(rng, (0, (165, 190, 215)), (38, (240, 245, 250)))
    _scatter(canvas, rng, 60, 0, (250, 252, 255), height=2)
    return canvas


def _night(rng: Rng) -> Pixels:
    canvas = _layers(rng, (0, (20, 24, 70)))
    _scatter(canvas, rng, 40, 0, (235, 235, 200))
    centre = (rng.integers(7, 12), rng.integers(7, 57))
    moon = (_ROWS - centre[0]) ** 2 + (_COLUMNS - centre[1]) ** 2 < 5.5**2
    canvas[moon] = (245, 235, 170)
    return canvas


def _beach(rng: Rng) -> Pixels:
    return _layers(rng, (0, (145, 210, 245)), (22, (40, 130, 200)), (40, (238, 214, 150)))
