"""The doctor's look at a data source and, where there is one, the job around it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from dreambooth.cli.doctor import pictures
from dreambooth.cli.doctor.remarks import Remark, Report, listed
from dreambooth.cli.doctor.sidecars import (
    UNREAD,
    Made,
    make_captions,
    make_masks,
    taken_for_pictures,
    without_masks,
)
from dreambooth.errors import JobError, UserError
from dreambooth.helpers.random import numpy_generator
from dreambooth.interfaces.data import AUTO, Subject, without_identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from PIL.Image import Image

    from dreambooth.interfaces import Captioner, DataSource, Item, Masker, Progress, Scan
    from dreambooth.job import Job

    Bar = Callable[[str, int], AbstractContextManager[Progress]]

MOST = 64
"""Pictures that are looked at closely."""
LARGEST = 1024
FEW, MANY = 3, 30
PASSES = (20, 400)
"""How often each picture is seen in a run, usually."""


class _Silent:
    def advance(self, count: int = 1) -> None:
        """Do nothing."""


class _Room:
    """As much of a context as a scan needs: the job, and somebody to tell."""

    def __init__(self, job: Any, bar: Bar | None) -> None:
        self.job, self.is_main, self._bar = job, True, bar

    def warn(self, message: str) -> None:
        """Leave it: the remarks say what is wrong in their own words."""

    def progress(self, label: str, total: int) -> AbstractContextManager[Any]:
        """Show progress where somebody watches."""
        return self._bar(label, total) if self._bar else nullcontext(_Silent())


class _NoJob:
    """Stands for a job where there are pictures alone."""

    def __init__(self) -> None:
        self.subject = Subject(identifier=AUTO, class_noun="thing")


def look(source: DataSource, job: Job | None = None, bar: Bar | None = None) -> Report:
    """Return what there is to say of a source's pictures, and of the job that trains them.

    `JobError` where there is no picture at all.
    """
    room: Any = _Room(job or _NoJob(), bar)
    folder: Path | None = getattr(source, "path", None)
    scan, masks = scan_of(source, room)
    report = Report(folder, len(scan.items))
    report.remarks += broken(scan)
    report.remarks += taken_for_pictures(masks, source, job is not None)
    close = scan.items[:MOST]
    images: list[tuple[str, Image]] = []
    with room.progress("Looking at pictures", len(close)) as progress:
        for item in close:
            images.append((item.id, original(source, item)))
            report.crops.append((item.id, crop(source, item)))
            progress.advance()
    report.remarks += pictures.sizes(scan.items, source.size)
    report.remarks += pictures.soft(images)
    report.remarks += pictures.twins(scan.items, images)
    report.remarks += pictures.shapes(scan.items, source.size)
    report.remarks += pictures.suffixes(close)
    report.remarks += amount(scan)
    if job is not None:
        report.remarks += captions(scan, job)
        report.remarks += identifier(job)
        report.remarks += passes(scan, job)
    return report


def scan_of(source: DataSource, room: Any, **options: Any) -> tuple[Scan, list[str]]:
    """Return a source's pictures, however many are broken, and the names of masks among them.

    `options` replace those of the source's own that it has.
    """
    if getattr(source, "broken", None) == "refuse":
        options["broken"] = "quarantine"
    known = {name: value for name, value in options.items() if name in type(source).model_fields}
    return without_masks(source.model_copy(update=known).scan(room))


def add_sidecars(
    source: DataSource,
    job: Job | None,
    bar: Bar | None,
    masker: Masker | None,
    captioner: Captioner | None,
    force: bool = False,
) -> Made:
    """Write masks and captions beside a source's pictures; those that are there stay."""
    made = Made()
    if masker is None and captioner is None:
        return made
    room: Any = _Room(job or _NoJob(), bar)
    scan, _ = scan_of(source, room, mask=None)
    if masker is not None:
        made += make_masks(masker, scan, upright, room.progress, force=force)
    if captioner is not None:
        read = getattr(source, "captions", "auto")
        suffix = ".caption" if read == "caption" else ".txt"
        subject = job.subject if job else None
        made += make_captions(
            captioner, scan, upright, room.progress, subject, force=force, suffix=suffix
        )
        if read in {"none", "metadata"}:
            made.remarks.append(UNREAD)
    return made


def original(source: DataSource, item: Item) -> Image:
    """Return a picture as it lies there, upright and no larger than is looked at."""
    if item.path is None:
        return crop(source, item)
    try:
        return upright(item)
    except OSError:
        return crop(source, item)


def upright(item: Item) -> Image:
    """Return an item's file as RGB, upright and no larger than is looked at."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    assert item.path is not None
    with Pillow.open(item.path) as image:
        image.draft("RGB", (LARGEST, LARGEST))
        found = ImageOps.exif_transpose(image).convert("RGB")
    found.thumbnail((LARGEST, LARGEST))
    return found


def crop(source: DataSource, item: Item) -> Image:
    """Return a picture as it is trained, without augmentation."""
    from PIL import Image as Pillow

    return Pillow.fromarray(source.load(item, 0, numpy_generator(0, "doctor")).pixels)


def broken(scan: Scan) -> Iterator[Remark]:
    """Yield a remark a file that should have been a picture and is not, and one over others."""
    others = []
    for row in scan.rejected:
        if row.reason.startswith(("a system or hidden file", "not an image")):
            others.append(row.id)
            continue
        yield Remark("problem", "broken", f"not used: {row.reason}", (row.id,), "", (row.id,))
    if shown := tuple(name for name in others if not name.rpartition("/")[2].startswith(".")):
        yield Remark("look", "broken", "not pictures, so they are not used", shown)


def amount(scan: Scan) -> Iterator[Remark]:
    """Yield a remark over how many pictures there are."""
    count = len(scan.items)
    if count < FEW:
        one = "picture" if count == 1 else "pictures"
        yield Remark("look", "amount", f"{count} {one}; three to five different views are better")
    elif count <= MANY:
        yield Remark("good", "amount", f"{count} usable pictures")
    else:
        yield Remark("look", "amount", f"{count} pictures: more than a subject needs")


def captions(scan: Scan, job: Job) -> Iterator[Remark]:
    """Yield remarks over captions that are missing or do not name the subject."""
    with_one = [item for item in scan.items if item.caption is not None]
    without = [item.id for item in scan.items if item.caption is None]
    if with_one and without:
        yield Remark(
            "look", "caption", f"without a caption, trained with {job.data.prompt!r}",
            tuple(without), "write one, or remove the others",
        )  # fmt: skip
    mute = []
    for item in with_one:
        prompt = " ".join(job.data.item_prompt(item, job.subject).split())
        if without_identifier(prompt, job.subject) == prompt:
            mute.append(item.id)
    if mute:
        yield Remark(
            "problem", "caption", "their captions do not name the subject, so it cannot be called",
            tuple(mute), "write {identifier} {class_noun} into them",
        )  # fmt: skip


def identifier(job: Job) -> Iterator[Remark]:
    """Yield a remark over the tokens that the identifier is to the model."""
    if job.freezing.learns_word() or job.subject.identifier == AUTO:
        return
    try:
        vocabulary = job.model.vocabulary()
        parts = vocabulary.split(job.subject.identifier) if vocabulary else []
    except UserError:
        return
    if len(parts) > 1:
        yield Remark(
            "look",
            "identifier",
            f'"{job.subject.identifier}" is {len(parts)} tokens to this model '
            f"({listed(parts)}); a word that is one learns better",
            (),
            "dbt identifier JOB proposes some",
        )
    elif parts:
        yield Remark("good", "identifier", f'"{job.subject.identifier}" is one token')


def passes(scan: Scan, job: Job) -> Iterator[Remark]:
    """Yield a remark over how often every picture is seen."""
    rows = job.train.steps * job.train.batch_size * job.train.accumulation
    each = rows / max(1, len(scan.items))
    told = (
        f"{job.train.steps} steps see each of the {len(scan.items)} pictures about {each:.0f} times"
    )
    low, high = PASSES
    if each < low:
        yield Remark("look", "amount", f"{told}: few", (), "raise train.steps")
    elif each > high:
        yield Remark("look", "amount", f"{told}: many", (), "lower train.steps")
    else:
        yield Remark("good", "amount", told)


def source_of(folder: Path, resolution: int) -> DataSource:
    """Return a source for pictures without a job."""
    from dreambooth.plugins import registry

    kinds: Mapping[str, Any] = registry().kinds("data")
    if "folder" not in kinds:
        raise JobError("no data source for folders is installed", "name a job file instead")
    found: DataSource = kinds["folder"].model_validate({"path": folder, "resolution": resolution})
    return found
