"""`dbt doctor --masks` and `--captions`: files beside pictures, under names that training reads."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from dreambooth.cli.doctor.remarks import Remark
from dreambooth.errors import JobError, RunError
from dreambooth.files import write_text, write_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from PIL.Image import Image

    from dreambooth.interfaces import Captioner, DataSource, Item, Masker, Progress, Scan, Subject

    Bar = Callable[[str, int], AbstractContextManager[Progress]]
    Open = Callable[[Item], Image]

AT_ONCE = 4
DEVICE = "cpu"
SMALL, LARGE = 0.05, 0.60
"""Shares of a picture that a subject's mask usually has."""
LEAST = 0.001
_MASK = re.compile(r"^(?P<owner>.+)[.-]mask$")


@dataclass(frozen=True)
class Sidecar:
    """A file that was written beside a picture."""

    path: Path
    about: str
    """The caption, or how much of the picture the subject is."""


@dataclass
class Made:
    """What was written beside pictures, and what there is to say of it."""

    written: list[Sidecar] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def __add__(self, other: Made) -> Made:
        """Return what two looks made."""
        return Made(self.written + other.written, self.remarks + other.remarks)


UNREAD = Remark("look", "caption", "captions are read with data: {captions: auto}")


def masks_among(ids: Iterable[str]) -> list[str]:
    """Return the names that are masks of other pictures among them: `01.mask.png` of `01.jpg`."""
    names = list(ids)
    stems = {_stem(name) for name in names}
    return [n for n in names if (m := _MASK.match(_stem(n))) and m["owner"] in stems]


def masks_of(path: Path) -> list[Path]:
    """Return the masks that lie beside a picture."""
    return [path.with_name(name) for name in _files_like(path, r"{stem}[.-]mask\.[A-Za-z]+")]


def without_masks(scan: Scan) -> tuple[Scan, list[str]]:
    """Return a scan without the masks that it took for pictures, and their names."""
    masks = masks_among(item.id for item in scan.items)
    items = tuple(item for item in scan.items if item.id not in masks)
    return replace(scan, items=items), masks


def taken_for_pictures(
    masks: Sequence[str], source: DataSource, by_a_job: bool
) -> Iterator[Remark]:
    """Yield a remark over masks that a job trains as if they were pictures, or would."""
    if masks and getattr(source, "mask", None) is None:
        yield Remark(
            "problem" if by_a_job else "look",
            "mask",
            "masks: a job reads them with data: {mask: file}, and trains them as pictures without",
            tuple(masks),
        )


def make_masks(
    masker: Masker, scan: Scan, open_picture: Open, bar: Bar, *, force: bool = False
) -> Made:
    """Write `01.mask.png` beside `01.jpg`, white where the subject is.

    A picture that has a mask keeps it, unless `force`. `JobError` where pictures lie in no folder.
    """
    twins = _twins(scan)
    written, remarks, kept, wanted = [], [], [], []
    for item in scan.items:
        dest = _folder(item) / f"{_path(item).stem}.mask.png"
        there = [mask.name for mask in masks_of(_path(item))]
        if _stem(item.id) in twins:
            remarks.append(Remark("look", "mask", "two pictures of one name share a mask's name",
                                  (item.id,), "rename one of them"))  # fmt: skip
        elif there and not force:
            kept.append(item.id)
        elif set(there) - {dest.name}:
            remarks.append(Remark("look", "mask", f"has a mask of another name ({there[0]})",
                                  (item.id,), "move it away first"))  # fmt: skip
        else:
            wanted.append((item, dest))
    for (item, dest), mask in _asked(masker.masks, "Finding subjects", wanted, open_picture, bar):
        share = float(mask.mean())
        if share < LEAST:
            remarks.append(Remark("look", "mask", "no subject was found in it", (item.id,)))
            continue
        _write_mask(dest, mask, item.size)
        written.append(Sidecar(dest, f"the subject is {share:.0%} of {item.id}"))
        if not SMALL <= share <= LARGE:
            odd = "little" if share < SMALL else "much"
            told = f"its mask covers {odd} of it ({share:.0%})"
            remarks.append(Remark("look", "mask", told, (item.id,), "paint it anew if it is wrong"))
    return Made(written, [*remarks, *_left(kept, "mask")])


def make_captions(
    captioner: Captioner,
    scan: Scan,
    open_picture: Open,
    bar: Bar,
    subject: Subject | None = None,
    *,
    force: bool = False,
    suffix: str = ".txt",
) -> Made:
    """Write `01.txt` beside `01.jpg`, with the subject's placeholders in it.

    A picture that has a caption, here or in `metadata.jsonl`, keeps it, unless `force`.
    """
    twins = _twins(scan)
    written, remarks, kept, wanted = [], [], [], []
    for item in scan.items:
        path = _path(item)
        name = path.name if _stem(item.id) in twins else path.stem
        there = _files_like(path, r"({stem}|{name})\.(txt|caption)")
        if (there or item.caption is not None) and not force:
            kept.append(item.id)
        else:
            wanted.append((item, _folder(item) / f"{name}{suffix}"))
    for (item, dest), said in _asked(captioner.captions, "Describing", wanted, open_picture, bar):
        text = " ".join(said.split())
        if not text:
            remarks.append(Remark("look", "caption", "nothing was said of it", (item.id,)))
            continue
        caption = with_subject(text, subject.class_noun if subject else None)
        _write(dest, lambda path, text=caption: write_text(path, f"{text}\n"))  # type: ignore[misc]
        written.append(Sidecar(dest, caption))
    return Made(written, [*remarks, *_left(kept, "caption")])


def with_subject(caption: str, class_noun: str | None) -> str:
    """Return a caption that names the subject by its placeholders.

    The class noun becomes `{identifier} {class_noun}` where the caption says it; the placeholders
    go before it where it does not.
    """
    named = "{identifier} {class_noun}"
    if class_noun:
        word = rf"(?<!\w){re.escape(class_noun)}(?!\w)"
        found, count = re.subn(word, named, caption, count=1, flags=re.IGNORECASE)
        if count:
            return found
    return f"a photo of {named}, {caption}"


def _asked(
    ask: Callable[[list[Image], str], Sequence[Any]],
    label: str,
    wanted: Sequence[tuple[Item, Path]],
    open_picture: Open,
    bar: Bar,
) -> Iterator[tuple[tuple[Item, Path], Any]]:
    """Yield each picture that is wanted with the answer, some pictures at a time."""
    if not wanted:
        return
    with bar(label, len(wanted)) as progress:
        for first in range(0, len(wanted), AT_ONCE):
            some = wanted[first : first + AT_ONCE]
            answers = ask([_opened(open_picture, item) for item, _ in some], DEVICE)
            yield from zip(some, answers, strict=True)
            progress.advance(len(some))


def _opened(open_picture: Open, item: Item) -> Image:
    try:
        return open_picture(item)
    except OSError as error:
        raise RunError(f"cannot read {item.path}: {error.strerror or error}") from error


def _write_mask(dest: Path, mask: Any, size: tuple[int, int]) -> None:
    from PIL import Image as Pillow

    grey = Pillow.fromarray((mask * 255).round().astype("uint8"), mode="L")
    whole = grey.resize((size[1], size[0]), Pillow.Resampling.BILINEAR)
    _write(dest, lambda path: write_with(path, lambda beside: whole.save(beside, format="PNG")))


def _write(dest: Path, write: Callable[[Path], None]) -> None:
    try:
        write(dest)
    except OSError as error:
        raise RunError(
            f"cannot write {dest}: {error.strerror or error}",
            "check that the folder is writable and has room; what was written stays",
        ) from error


def _left(kept: Sequence[str], what: str) -> list[Remark]:
    said = f"had a {what} before and kept it"
    return [Remark("good", what, said, tuple(kept), "--force writes anew")] if kept else []


def _files_like(path: Path, pattern: str) -> list[str]:
    wanted = pattern.replace("{stem}", re.escape(path.stem)).replace("{name}", re.escape(path.name))
    return sorted(p.name for p in path.parent.iterdir() if re.fullmatch(wanted, p.name))


def _folder(item: Item) -> Path:
    return _path(item).parent


def _path(item: Item) -> Path:
    if item.path is None:
        raise JobError(
            f"{item.id} is no file, so nothing can be written beside it",
            "masks and captions are made for pictures in a folder",
        )
    return item.path


def _twins(scan: Scan) -> set[str]:
    """Return the names, without suffix, that several pictures have."""
    stems = Counter(_stem(item.id) for item in scan.items)
    return {stem for stem, count in stems.items() if count > 1}


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()
