"""Pictures in a terminal: two pixels a character cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.color import Color
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from pathlib import Path

MAX_WIDTH = 128
MAX_LINES = 24


def halfblocks(path: Path, width: int, lines: int = MAX_LINES) -> Text:
    """Draw the picture at `path` in at most `width` by `lines` cells, upper over lower pixel."""
    from PIL import Image

    with Image.open(path) as image:
        scale = min(min(width, MAX_WIDTH) / image.width, 2 * min(lines, MAX_LINES) / image.height)
        columns = max(1, round(image.width * min(scale, 1.0)))
        rows = max(2, round(image.height * min(scale, 1.0)) // 2 * 2)
        small = image.convert("RGB").resize((columns, rows), Image.Resampling.BOX)
    text = Text(no_wrap=True)
    for y in range(0, rows, 2):
        for x in range(columns):
            upper, lower = small.getpixel((x, y)), small.getpixel((x, y + 1))
            assert isinstance(upper, tuple)
            assert isinstance(lower, tuple)
            style = Style(color=Color.from_rgb(*upper[:3]), bgcolor=Color.from_rgb(*lower[:3]))
            text.append("▀", style)
        text.append("\n")
    return text
