"""The contact sheet of a run: its samples over time, the photographs at the left."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from dreambooth.engine.results.samples import photographs, read_pictures
from dreambooth.errors import UserError
from dreambooth.helpers.pictures import save_picture
from dreambooth.helpers.sheets import Row, contact_sheet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import Scan
    from dreambooth.runs.folder import RunFolder

NAME = "contact-sheet.png"
COLUMNS, ROWS = 8, 12
"""Steps and prompts on one sheet, at most: it stays readable, and a few megabytes."""


def write_contact_sheet(
    ctx: EngineContext, folder: RunFolder, scan: Scan, until: int
) -> Path | None:
    """Write `contact-sheet.png` from the samples up to step `until`; None where there are none.

    Rows are prompts (the first picture of each), columns steps: the first, the last, and others
    evenly between them. What cannot be read is left empty.
    """
    sets = thinned([s for s in sample_sets(folder.samples) if s[0] <= until])
    pictures = {step: firsts(where) for step, where in sets}
    prompts = list(dict.fromkeys(p for found in pictures.values() for p in found))[:ROWS]
    if not prompts:
        return None
    rows = [Row(prompt, [pictures[step].get(prompt) for step, _ in sets]) for prompt in prompts]
    names = ["untrained" if step == 0 else f"step {step}" for step, _ in sets]
    photos: list[Image.Image] = []
    with suppress(OSError, UserError):  # kept latents go on without the files
        photos = photographs(ctx, scan)
    subject = ctx.job.subject
    title = f"{ctx.job.name}: {subject.identifier} {subject.class_noun}"
    sheet = contact_sheet(names, rows, photos, "your photographs", title)
    path = folder.path / NAME
    save_picture(path, sheet, {"prompt": " | ".join(prompts), "step": until})
    return path


def sample_sets(samples: Path) -> list[tuple[int, Path]]:
    """Return the steps a run has samples of, with their folders."""
    found = [
        (int(path.name.removeprefix("step-")), path)
        for path in samples.glob("step-*")
        if path.name.removeprefix("step-").isdecimal()
    ]
    return sorted(found)


def thinned(sets: Sequence[tuple[int, Path]]) -> Sequence[tuple[int, Path]]:
    """Return at most `COLUMNS` of them, evenly, the first and the last included."""
    if len(sets) <= COLUMNS:
        return sets
    last = len(sets) - 1
    return [sets[round(i * last / (COLUMNS - 1))] for i in range(COLUMNS)]


def firsts(folder: Path) -> dict[str, Image.Image]:
    """Return the first picture of each prompt of a folder of samples."""
    found: dict[str, Image.Image] = {}
    for picture in read_pictures(folder):
        found.setdefault(picture.prompt, picture.image)
    return found
