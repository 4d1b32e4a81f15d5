"""Contact sheets: pictures in rows and columns with captions in type, large enough to be seen."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth.helpers.text import flat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image, ImageDraw, ImageFont

SIDE = 192
"""Pixels of a cell's longer side, at least: 64 pixels are shown three times as large."""
LARGEST = 288
GAP, MARGIN = 8, 16
LINES = 3
"""Lines a caption may take; the rest of it is cut."""
SIZE = 14
PAPER, INK, FAINT = "white", (24, 24, 24), (110, 110, 110)


@dataclass(frozen=True)
class Row:
    """A row of a sheet: a caption above it and its pictures, None where there is none."""

    caption: str
    images: Sequence[Image.Image | None]


def shown(image: Image.Image, side: int) -> Image.Image:
    """Return a picture with its longer side at most `side`, enlarged by whole numbers alone."""
    from PIL import Image as Pillow

    picture = image.convert("RGB")
    longer = max(picture.size)
    if longer > side:
        width, height = (max(1, round(n * side / longer)) for n in picture.size)
        return picture.resize((width, height), Pillow.Resampling.LANCZOS)
    times = max(1, side // longer)
    # Every pixel as it is: a small picture shall not look better than what was drawn.
    return picture.resize(
        (picture.width * times, picture.height * times), Pillow.Resampling.NEAREST
    )


def cell_side(images: Sequence[Image.Image]) -> int:
    """Return the side of a cell that shows these pictures by whole numbers where they are small."""
    longer = max((max(image.size) for image in images), default=SIDE)
    return min(LARGEST, max(longer, longer * -(-SIDE // longer)))


def contact_sheet(
    columns: Sequence[str],
    rows: Sequence[Row],
    pinned: Sequence[Image.Image] = (),
    pinned_caption: str = "",
    title: str = "",
) -> Image.Image:
    """Lay out rows of pictures below the columns' names, `pinned` ones in columns at the left.

    Captions are texts as they are (one line each; control characters left out). At least one row.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    side = cell_side([image for row in rows for image in row.images if image is not None])
    font = ImageFont.load_default(SIZE)
    step = side + GAP
    # As many lines as the longest caption takes, and as many columns of photographs as keep them
    # within the rows' height.
    room = max(len(columns) * step, 360)
    lines = max(len(wrapped(row.caption, room, LINES)) for row in rows)
    caption_height = lines * (SIZE + 4) + 6
    row_height = caption_height + step
    head = MARGIN + (SIZE + 12 if title else 0)
    top = head + SIZE + 10
    height = top + len(rows) * row_height + MARGIN
    fitting = max(1, (height - top - MARGIN) // step)
    beside = -(-len(pinned) // fitting)
    left = MARGIN + (beside * step + 2 * GAP if beside else 0)
    width = max(left + len(columns) * step, 360) + MARGIN
    sheet = Pillow.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        write(draw, (MARGIN, MARGIN), title, font, width - 2 * MARGIN, 1)
    if beside:
        write(draw, (MARGIN, head), pinned_caption, font, beside * step, 1, FAINT)
        for i, image in enumerate(pinned):
            at = (MARGIN + i // fitting * step, top + i % fitting * step)
            sheet.paste(shown(image, side), at)
    for i, name in enumerate(columns):
        write(draw, (left + i * step, head), name, font, side, 1, FAINT)
    for number, row in enumerate(rows):
        y = top + number * row_height
        write(draw, (left, y), row.caption, font, width - left - MARGIN, LINES)
        for i, picture in enumerate(row.images):
            if picture is not None:
                sheet.paste(shown(picture, side), (left + i * step, y + caption_height))
    return sheet


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
    lines: int,
    ink: tuple[int, int, int] = INK,
) -> None:
    """Write a stranger's text into a box of `width` pixels, cut after `lines` lines."""
    for number, line in enumerate(wrapped(text, width, lines)):
        draw.text((at[0], at[1] + number * (SIZE + 4)), line, fill=ink, font=font)


def wrapped(text: str, width: int, lines: int) -> list[str]:
    """Return the lines of a stranger's text in a box of `width` pixels."""
    letters = max(8, int(width / (0.52 * SIZE)))
    return textwrap.wrap(flat(text), letters, max_lines=lines, placeholder=" ...")
