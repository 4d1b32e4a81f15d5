"""Looking through a folder: which files are usable pictures, and why the others are not."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.errors import JobError
from dreambooth.files import read_limited
from dreambooth.interfaces import Item, Rejected
from dreambooth_plugins.data import captions as caption_files
from dreambooth_plugins.data import file_types
from dreambooth_plugins.data.captions import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dreambooth.interfaces import Context

MANY = 32
"""From this many files on, checking them shows a progress bar."""
GLANCE = 2000
_REPEATS = re.compile(r"[0-9]+_.")
_HINT = "Put 3-5 pictures (JPEG, PNG, WebP) of the subject there, or correct data.path."


@dataclass
class Found:
    """What lies in a folder, before captions."""

    items: list[Item] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Ids of caption files."""
    rejected: list[Rejected] = field(default_factory=list)
    broken: list[Rejected] = field(default_factory=list)
    """Those of `rejected` that should have been pictures."""


def list_files(root: Path, recursive: bool) -> list[str]:
    """Return the files below `root` as sorted relative paths with forward slashes.

    Hidden folders are never entered; the files of other folders count only if `recursive`. Links
    to folders are then followed, each folder once.
    """
    return sorted(_walk(root, recursive))


def _walk(root: Path, recursive: bool, most: int | None = None) -> Iterator[str]:
    """Yield files, out of `most` folders at most; links may go in circles, or to a whole disk."""
    seen = {os.path.realpath(root)}
    for folder, folders, files in islice(os.walk(root, followlinks=True), most):
        here = Path(folder)
        inside = [f for f in folders if recursive and not file_types.is_hidden(f)]
        # Folders go before links to them: a file has the name of where it lies.
        inside.sort(key=lambda name: ((here / name).is_symlink(), name))
        folders.clear()
        for name in inside:
            if (real := os.path.realpath(here / name)) not in seen:
                seen.add(real)
                folders.append(name)
        yield from ((here / f).relative_to(root).as_posix() for f in files)


def repeats(names: Iterable[str]) -> list[str]:
    """Return the folders among paths that are named as kohya's trainer wants them (`10_dog`)."""
    folders = {part for name in names for part in name.split("/")[:-1]}
    return sorted(f for f in folders if _REPEATS.match(f))


def inspect(root: Path, ids: list[str], ctx: Context) -> Found:
    """Read and fully decode every file once; nothing is kept but what describes it."""
    found = Found()
    for name in _watched(ids, ctx):
        path = root / name
        if caption_files.is_caption_file(path.name) and not file_types.is_hidden(path.name):
            found.others.append(name)
            continue
        outcome, broken = _inspect_file(path, name)
        if isinstance(outcome, Item):
            found.items.append(outcome)
            continue
        found.rejected.append(outcome)
        if broken:
            found.broken.append(outcome)
    return found


def _watched(ids: list[str], ctx: Context) -> Iterator[str]:
    if len(ids) < MANY:
        yield from ids
        return
    with ctx.progress("checking pictures", len(ids)) as bar:
        for name in ids:
            yield name
            bar.advance()


def _inspect_file(path: Path, name: str) -> tuple[Item | Rejected, bool]:
    """Return a usable item, or a rejection and whether the file should have been a picture."""
    try:
        kind = file_types.sniff_file(path)
        if kind is None or file_types.is_hidden(path.name):
            reason, broken = file_types.why_no_image(path, path.stat().st_size)
            return Rejected(name, reason), broken
        if file_types.is_camera_raw(path):
            return Rejected(name, "a camera's raw file: export it as JPEG"), True
        data = read_limited(path, file_types.MAX_BYTES)
    except FileNotFoundError:
        return Rejected(name, "a link to a file that is not there"), True
    except OSError as error:
        return Rejected(name, f"cannot be read ({error.strerror or error})"), True

    from dreambooth_plugins.data.images import ImageRejected, decode

    try:
        width, height = decode(data).size
    except ImageRejected as error:
        return Rejected(name, str(error)), True
    return Item(name, path, hashlib.sha256(data).hexdigest(), (height, width)), False


def duplicates(items: Iterable[Item]) -> list[list[str]]:
    """Return groups of ids whose files are byte for byte the same."""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(item.sha256, []).append(item.id)
    return [ids for ids in groups.values() if len(ids) > 1]


def require_folder(path: Path) -> None:
    """Raise `JobError` with the likely mistake if `path` is no folder."""
    reason, hint = folder_problem(path)
    if reason:
        raise JobError(f"data.path: {reason}", hint)


def folder_problem(path: Path) -> tuple[str, str]:
    """Return what is wrong with a data path and what to do; empty strings if nothing is."""
    if path.is_dir():
        if os.access(path, os.R_OK | os.X_OK):
            return "", ""
        return f"{path} may not be listed (permission denied)", "Make the folder readable."
    if path.is_file():
        return f"{path} is a file, not a folder", f"Give the folder that holds it: {path.parent}"
    if not os.access(path.parent, os.R_OK | os.X_OK):
        return f"{path} does not exist (nor can {path.parent} be listed)", _HINT
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()]
    near = get_close_matches(path.name, siblings, n=1) or [
        s for s in siblings if s.casefold() == path.name.casefold()
    ]
    return f"{path} does not exist", f"Did you mean {path.parent / near[0]}?" if near else _HINT


def nothing_usable(root: Path, rejected: Iterable[Rejected], recursive: bool) -> JobError:
    """Return the error for a folder without one usable picture: what is there, and why not."""
    rows = list(rejected)
    below = image_folders(root) if not recursive else Counter[str]()
    if below:
        name, count = below.most_common(1)[0]
        return JobError(
            f"data.path: no pictures directly in {root}; {count} lie in its folder {name!r}",
            f"Set data.path to {root / name}, or data.recursive to true.",
        )
    if not rows:
        return JobError(f"data.path: {root} is empty", _HINT)
    listed = "\n".join(f"  {row.id}: {row.reason}" for row in rows[:10])
    more = f"\n  and {len(rows) - 10} more" if len(rows) > 10 else ""
    plural = "file" if len(rows) == 1 else "files"
    return JobError(
        f"data.path: no usable picture among the {len(rows)} {plural} in {root}:\n{listed}{more}",
        _HINT,
    )


def image_folders(root: Path) -> Counter[str]:
    """Count what looks like images in the folders below `root`, by folder (relative path).

    Looks at the first `GLANCE` files only: someone may have named a whole disk.
    """
    below = islice((n for n in _walk(root, recursive=True, most=GLANCE) if "/" in n), GLANCE)
    return Counter(n.rpartition("/")[0] for n in below if file_types.looks_like_image(root / n))


def warn_of(items: list[Item], size: tuple[int, int], ctx: Context) -> None:
    """Warn of duplicates, and of images that have to be enlarged to `size`."""
    for ids in duplicates(items):
        ctx.warn(f"the same picture {len(ids)} times counts {len(ids)}-fold: {shorten(ids)}")
    small = [i.id for i in items if i.size[0] < size[0] or i.size[1] < size[1]]
    if small:
        ctx.warn(
            f"{len(small)} of {len(items)} pictures are smaller than {size[1]} x {size[0]} pixels "
            f"and get enlarged, so the result may be soft: {shorten(small)}"
        )
