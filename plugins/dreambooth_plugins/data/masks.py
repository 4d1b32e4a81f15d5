"""Subject masks: files beside the pictures, or the pictures' own alpha channel."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from dreambooth.errors import JobError
from dreambooth.files import read_limited
from dreambooth.interfaces import Item, Rejected
from dreambooth_plugins.data import file_types
from dreambooth_plugins.data.captions import shorten
from dreambooth_plugins.data.file_types import as_compared

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from dreambooth.interfaces import Context
    from dreambooth_plugins.data.scanning import Found

MaskKind = Literal["auto", "alpha", "file"]
ASPECT_TOLERANCE = 0.01
"""How far the shape of a mask may be from its picture's, since smaller masks are rounded."""
_NAME = re.compile(r"^(?P<owner>.+)[.-]mask$")


def owners(names: Sequence[str]) -> dict[str, str]:
    """Return mask file -> stem of the picture it is named for (`01` for `01.mask.png`).

    `names` are paths relative to the data folder. Only names that a picture may have count.
    """
    found = {}
    for name in names:
        stem, _, suffix = name.rpartition(".")
        match = _NAME.match(stem)
        if match and f".{suffix.lower()}" in file_types.IMAGE_SUFFIXES:
            found[name] = as_compared(match["owner"])
    return found


def pairs(names: Sequence[str]) -> dict[str, str]:
    """Return mask file -> picture, for the masks whose picture is there."""
    masks = owners(names)
    pictures = {
        as_compared(n.rpartition(".")[0]): n for n in names if n not in masks and _is_picture(n)
    }
    return {mask: pictures[stem] for mask, stem in masks.items() if stem in pictures}


def _is_picture(name: str) -> bool:
    return f".{name.rpartition('.')[2].lower()}" in file_types.IMAGE_SUFFIXES


def apart(names: Sequence[str], kind: MaskKind | None) -> tuple[list[str], dict[str, str]]:
    """Split files into those that may be pictures, and mask file -> stem of its picture."""
    masks = owners(names) if kind in ("auto", "file") else {}
    return [name for name in names if name not in masks], masks


def attach(root: Path, kind: MaskKind, masks: Mapping[str, str], found: Found) -> list[str]:
    """Give items their masks, and return warnings.

    A picture whose mask cannot serve moves to `found.broken`; `JobError` where no picture has a
    mask at all.
    """
    by_stem = {stem: name for name, stem in masks.items()}
    items, whole = [], []
    for item in found.items:
        name = by_stem.pop(as_compared(item.id.rpartition(".")[0]), None)
        outcome, has_mask = _masked(root, kind, name, item)
        if isinstance(outcome, Item):
            items.append(outcome)
            whole += [] if has_mask else [item.id]
        else:
            found.rejected.append(outcome)
            found.broken.append(outcome)
    found.items = items
    for stem, name in by_stem.items():
        found.rejected.append(Rejected(name, f"a mask without a usable picture named {stem}"))
    if items and len(whole) == len(items):
        raise JobError(f"data.mask: no picture in {root} has a mask", hint(kind))
    if whole:
        return [f"{len(whole)} of {len(items)} pictures have no mask and count as a whole: "
                + shorten(whole)]  # fmt: skip
    return []


def hint(kind: MaskKind) -> str:
    """Say where a mask is looked for."""
    beside = "put 01.mask.png or 01-mask.png beside 01.jpg, white where the subject is"
    clear = "make the background transparent"
    return {"file": beside, "alpha": clear, "auto": f"{beside}, or {clear}"}[kind]


def warn_of_unread(names: Sequence[str], ctx: Context) -> None:
    """Warn where files are named as masks while no masks are read."""
    if found := pairs(names):
        ctx.warn(
            f"{len(found)} files are named as masks and train as pictures: {shorten(found)}; "
            "set data.mask: file, or move them elsewhere"
        )


def _masked(
    root: Path, kind: MaskKind, name: str | None, item: Item
) -> tuple[Item | Rejected, bool]:
    """Return the item with its mask (or why it cannot be used), and whether it has one."""
    from dreambooth_plugins.data.images import ImageRejected, decode_alpha, decode_mask

    picture = item.path
    assert picture is not None, "a folder's items have files"
    try:
        if name is not None:
            data = read_limited(root / name, file_types.MAX_BYTES)
            mask: Image | None = decode_mask(data)
            assert mask is not None
            _check_shape((mask.height, mask.width), item.size)
            sha256 = hashlib.sha256(data).hexdigest()
            item = replace(item, mask=root / name, mask_sha256=sha256)
        else:
            mask = (
                decode_alpha(read_limited(picture, file_types.MAX_BYTES))
                if kind != "file"
                else None
            )
        if mask is not None and mask.getextrema()[1] == 0:
            raise ImageRejected("all black: there is no subject in it")
    except OSError as error:
        return Rejected(item.id, f"its mask cannot be read ({error.strerror or error})"), True
    except ImageRejected as error:
        named = f" {name}" if name else ""
        return Rejected(item.id, f"its mask{named} is no use: {error}"), True
    return item, mask is not None


def _check_shape(mask: tuple[int, int], picture: tuple[int, int]) -> None:
    from dreambooth_plugins.data.images import ImageRejected

    apart = mask[1] * picture[0] / (mask[0] * picture[1])
    if abs(apart - 1.0) > ASPECT_TOLERANCE:
        raise ImageRejected(
            f"{mask[1]} x {mask[0]} pixels, another shape than the picture's "
            f"{picture[1]} x {picture[0]}"
        )


def unpaired(names: Iterable[str], masks: Mapping[str, str]) -> bool:
    """Say whether none of the mask files belongs to one of the pictures."""
    stems = {as_compared(name.rpartition(".")[0]) for name in names}
    return not stems & set(masks.values())
