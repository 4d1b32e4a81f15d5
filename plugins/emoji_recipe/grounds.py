"""What a drawing stands on: plain and textured colours, gradients, patterns, drawn scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from emoji_recipe.nouns import COLOURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    Rng = np.random.Generator
    Floats = np.ndarray[Any, np.dtype[np.float32]]

EDGE = 128
_ROWS, _COLUMNS = (grid.astype(np.float32) for grid in np.mgrid[0:EDGE, 0:EDGE])


def draw(kind: str, colours: Sequence[str], rng: Rng) -> Floats:
    """Return a ground, float32 [128, 128, 3] in 0..255.

    `kind` is `solid`, `textured`, `gradient`, a pattern's or a scene's name.
    """
    tones = [_jittered(COLOURS[name], rng) for name in colours]
    if kind == "solid":
        return np.broadcast_to(tones[0], (EDGE, EDGE, 3)).astype(np.float32)
    if kind == "textured":
        return _textured(tones[0], rng)
    if kind == "gradient":
        return _blend(tones[0], tones[1], _ROWS / (EDGE - 1))
    if kind in _PATTERNS:
        return np.where(_PATTERNS[kind](rng)[..., None], tones[1], tones[0]).astype(np.float32)
    return _SCENES[kind](rng)


def smooth_noise(rng: Rng, cells: int, height: int = EDGE, width: int = EDGE) -> Floats:
    """Return smooth noise in 0..1, [height, width], of about `cells` bumps across."""
    small = rng.random((cells + 1, cells + 1), dtype=np.float32)
    made = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    noise: Floats = np.asarray(made).clip(0, 1)
    return noise


def _jittered(colour: Sequence[int], rng: Rng) -> Floats:
    moved = np.array(colour, np.float32) + rng.integers(-8, 9, 3)
    tone: Floats = np.clip(moved, 0, 255).astype(np.float32)
    return tone


def _blend(first: Floats, second: Floats, share_hw: Floats) -> Floats:
    return first + (second - first) * share_hw[..., None]


def _textured(tone: Floats, rng: Rng) -> Floats:
    """Return a colour with soft blotches and a fine grain, its mean kept."""
    rough = smooth_noise(rng, int(rng.integers(6, 14))) - 0.5
    grain = rng.standard_normal((EDGE, EDGE), dtype=np.float32)
    change = 36 * rough + float(rng.uniform(2, 7)) * grain
    made: Floats = np.clip(tone + (change - change.mean())[..., None], 0, 255)
    return made


def _stripes(rng: Rng) -> Any:
    width = int(rng.integers(10, 22))
    along = (_ROWS, _COLUMNS, _ROWS + _COLUMNS, _ROWS - _COLUMNS)[rng.integers(4)]
    return (along + rng.integers(2 * width)) // width % 2 == 1


def _dots(rng: Rng) -> Any:
    step = int(rng.integers(22, 36))
    down, across = (
        (axis + rng.integers(step)) % step - step / 2 + 0.5 for axis in (_ROWS, _COLUMNS)
    )
    return down**2 + across**2 < (0.27 * step) ** 2


def _checks(rng: Rng) -> Any:
    step = int(rng.integers(12, 24))
    down, across = ((axis + rng.integers(2 * step)) // step for axis in (_ROWS, _COLUMNS))
    return (down + across) % 2 == 1


_PATTERNS = {"stripes": _stripes, "dots": _dots, "checks": _checks}


def _bands(rng: Rng, *bands: tuple[int, tuple[int, int, int], tuple[int, int, int]]) -> Floats:
    """Paint bands from the top: (first row, colour there, colour at the band's end)."""
    canvas = np.zeros((EDGE, EDGE, 3), np.float32)
    starts = [b[0] + (int(rng.integers(-9, 10)) if b[0] else 0) for b in bands] + [EDGE]
    for (_, top, bottom), start, end in zip(bands, starts[:-1], starts[1:], strict=True):
        share = np.linspace(0, 1, max(1, end - start), dtype=np.float32)[:, None]
        tones = _blend(_jittered(top, rng), _jittered(bottom, rng), share)
        canvas[start:end] = tones[: end - start]
    return canvas


def _marks(
    canvas: Floats, rng: Rng, count: int, top: int, tone: Any, size: tuple[int, int]
) -> None:
    """Put `count` marks of a height and width at or below row `top`, in place."""
    rows = rng.integers(top, EDGE, count)
    for row, column in zip(rows, rng.integers(0, EDGE, count), strict=True):
        canvas[row : row + size[0], column : column + size[1]] = tone


def _disc(canvas: Floats, row: float, column: float, radius: float, tone: Any) -> None:
    near = np.hypot(_ROWS - row, _COLUMNS - column)
    cover = np.clip(radius + 0.5 - near, 0, 1)[..., None]
    canvas += (np.array(tone, np.float32) - canvas) * cover


def _ridge(canvas: Floats, rng: Rng, base: float, height: float, cells: int, tone: Any) -> None:
    """Fill below a rough line with a colour, in place."""
    line = base - height * np.interp(
        np.linspace(0, cells, EDGE), np.arange(cells + 1), rng.random(cells + 1)
    ).astype(np.float32)
    canvas += (_jittered(tone, rng) - canvas) * np.clip(_ROWS - line, 0, 1)[..., None]


def _grass(rng: Rng) -> Floats:
    canvas = _bands(rng, (0, (125, 195, 245), (190, 225, 248)), (66, (120, 195, 85), (75, 155, 60)))
    _marks(canvas, rng, 130, 76, (60, 140, 50), (5, 1))
    return canvas


def _snow(rng: Rng) -> Floats:
    canvas = _bands(
        rng, (0, (140, 170, 205), (195, 212, 228)), (74, (248, 251, 254), (228, 236, 246))
    )
    _marks(canvas, rng, 90, 0, (252, 253, 255), (2, 2))
    return canvas


def _night(rng: Rng) -> Floats:
    canvas = _bands(rng, (0, (12, 16, 55), (35, 40, 95)))
    _marks(canvas, rng, 45, 0, (235, 235, 205), (1, 1))
    _disc(canvas, rng.uniform(14, 26), rng.uniform(14, 114), rng.uniform(8, 12), (245, 235, 175))
    return canvas


def _beach(rng: Rng) -> Floats:
    return _bands(
        rng,
        (0, (125, 200, 245), (185, 225, 248)),
        (46, (35, 120, 195), (65, 165, 205)),
        (78, (240, 218, 160), (226, 198, 135)),
    )


def _forest(rng: Rng) -> Floats:
    canvas = _bands(rng, (0, (150, 190, 150), (100, 150, 95)), (86, (85, 110, 50), (60, 85, 40)))
    for _ in range(int(rng.integers(9, 14))):
        column, width = int(rng.integers(0, EDGE)), int(rng.integers(3, 8))
        canvas[: int(rng.integers(84, 98)), column : column + width] = _jittered((70, 50, 35), rng)
    for _ in range(26):
        tone = _jittered((45, 105, 50), rng)
        _disc(canvas, rng.uniform(-8, 34), rng.uniform(0, EDGE), rng.uniform(8, 17), tone)
    return canvas


def _desert(rng: Rng) -> Floats:
    canvas = _bands(
        rng, (0, (120, 190, 240), (215, 225, 225)), (80, (228, 180, 105), (205, 150, 80))
    )
    _ridge(canvas, rng, 90, 22, 3, (222, 170, 95))
    _ridge(canvas, rng, 108, 18, 2, (208, 152, 80))
    return canvas


def _mountains(rng: Rng) -> Floats:
    canvas = _bands(rng, (0, (135, 195, 240), (215, 230, 245)))
    _ridge(canvas, rng, 84, 62, 5, (125, 135, 160))
    _ridge(canvas, rng, 98, 40, 6, (90, 105, 130))
    _ridge(canvas, rng, 104, 6, 4, (85, 145, 80))
    return canvas


def _city(rng: Rng) -> Floats:
    canvas = _bands(
        rng, (0, (165, 200, 230), (220, 225, 230)), (104, (105, 105, 110), (85, 85, 90))
    )
    column = -int(rng.integers(0, 10))
    while column < EDGE:
        width, top = int(rng.integers(14, 26)), int(rng.integers(18, 74))
        tone = _jittered((105, 115, 135), rng)
        left = max(0, column)
        canvas[top:104, left : max(0, column + width - 1)] = tone
        lit = canvas[top + 4 : 100 : 8, left + 3 : max(0, column + width - 4) : 5]
        lit[:] = (238, 222, 150)
        column += width
    return canvas


def _moon(rng: Rng) -> Floats:
    canvas = _bands(rng, (0, (8, 8, 18), (14, 14, 30)), (80, (185, 185, 188), (140, 140, 145)))
    _marks(canvas[:72], rng, 40, 0, (240, 240, 240), (1, 1))
    _disc(canvas, rng.uniform(16, 30), rng.uniform(16, 112), rng.uniform(9, 14), (60, 120, 200))
    for _ in range(7):
        row = rng.uniform(90, 124)
        _disc(canvas, row, rng.uniform(0, EDGE), rng.uniform(3, 8), (128, 128, 133))
    return canvas


def _sea(rng: Rng) -> Floats:
    canvas = _bands(
        rng, (0, (60, 170, 215), (15, 70, 140)), (112, (215, 195, 145), (190, 165, 115))
    )
    for _ in range(16):
        row, column = rng.uniform(0, 108), rng.uniform(0, EDGE)
        _disc(canvas, row, column, rng.uniform(1, 3), (190, 230, 245))
    return canvas


def _wood(rng: Rng) -> Floats:
    grain = np.repeat(smooth_noise(rng, 24)[:, :1], EDGE, axis=1) + 0.4 * smooth_noise(rng, 4)
    tone = _jittered((170, 115, 65), rng)
    canvas = tone * (0.72 + 0.4 * grain[..., None])
    step = int(rng.integers(20, 34))
    canvas[int(rng.integers(step)) :: step] *= 0.6
    return np.clip(canvas, 0, 255).astype(np.float32)


def _sunset(rng: Rng) -> Floats:
    canvas = _bands(rng, (0, (75, 55, 130), (245, 140, 90)), (88, (120, 60, 90), (60, 35, 70)))
    row, column = rng.uniform(58, 76), rng.uniform(20, 108)
    _disc(canvas, row, column, rng.uniform(11, 17), (255, 222, 135))
    _ridge(canvas, rng, 96, 14, 5, (55, 32, 66))
    return canvas


_SCENES = {
    "grass": _grass,
    "snow": _snow,
    "night": _night,
    "beach": _beach,
    "forest": _forest,
    "desert": _desert,
    "mountains": _mountains,
    "city": _city,
    "moon": _moon,
    "sea": _sea,
    "wood": _wood,
    "sunset": _sunset,
}
