"""Instance images from a folder of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator

from dreambooth import Problem
from dreambooth.component import JobPath
from dreambooth.errors import JobError
from dreambooth.interfaces import DataSource, Item, Rejected, Sample, Scan, unknown_placeholders
from dreambooth_plugins.data.encodings import AUTO, known

if TYPE_CHECKING:
    import numpy as np

    from dreambooth import Job
    from dreambooth.interfaces import Context, ModelInfo
    from dreambooth_plugins.data.captions import Captions
    from dreambooth_plugins.data.scanning import Found

DECODER = 2
"""Raised when decoding or resizing changes pixels, so that cached latents are made anew."""


class Folder(DataSource):
    """A folder of pictures, with captions beside them or one prompt for all."""

    kind: Literal["folder"] = "folder"
    path: JobPath
    """Folder that holds the pictures; relative paths start at the job file's folder."""
    recursive: bool = False
    """Also take the pictures of folders inside it (hidden ones excepted)."""
    crop: Literal["center", "random"] = "center"
    """Which part of a picture is used where its shape is not the training size's. `random`
    draws a new crop each step, so latents cannot be cached."""
    flip: bool = False
    """Also train on each picture mirrored. Leave off where left and right matter (text, logos,
    faces)."""
    broken: Literal["quarantine", "refuse"] = "quarantine"
    """A damaged or unsuitable picture is left out and reported (`quarantine`), or stops the run
    (`refuse`). Files are never moved or changed."""
    captions: Literal["auto", "none", "txt", "caption", "metadata"] = "auto"
    """Where captions come from: files beside the pictures (`01.txt` or `01.caption` for
    `01.jpg`), `metadata.jsonl` (lines with file_name and text), whichever is there (`auto`), or
    nowhere. `{identifier}` and `{class_noun}` in them are filled in; a picture without a caption
    trains with `prompt`."""
    caption_encoding: Annotated[str, AfterValidator(known)] = AUTO
    """Encoding of caption files that are not UTF-8, e.g. `utf-16`, `cp1252` or `shift_jis`. UTF-8,
    and UTF-16 and UTF-32 with a byte order mark, are read in any case."""
    mask: Literal["auto", "alpha", "file"] | None = None
    """Where the subject is in a picture, for a loss that weighs by it (`masked`): in its alpha
    channel (`alpha`), in a file beside it that is white there (`file`: `01.mask.png` or
    `01-mask.png` for `01.jpg`), or in the file where there is one, else in the alpha channel
    (`auto`). A picture without a mask counts as a whole."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Look at the folder and the prompt, without decoding anything."""
        from dreambooth_plugins.data import file_types, masks, scanning

        reason, hint = scanning.folder_problem(self.path)
        if reason:
            yield Problem(("data", "path"), reason, hint)
        else:
            listed = scanning.list_files(self.path, self.recursive)
            names, found = masks.apart(listed, self.mask)
            if self.mask == "file" and masks.unpaired(names, found):
                at = ("data", "mask")
                yield Problem(at, f"no picture in {self.path} has a mask", masks.hint("file"))
            if not any(file_types.looks_like_image(self.path / name) for name in names):
                rows = [Rejected(n, self._glance(n)) for n in names]
                error = scanning.nothing_usable(self.path, rows, self.recursive)
                message = error.message.removeprefix("data.path: ")
                yield Problem(("data", "path"), message, error.hint)
            yield from self._check_captions(names)
        yield from self._check_prompt(job)

    def _check_captions(self, names: list[str]) -> Iterable[Problem]:
        """Read the captions of what is named as a picture."""
        from dreambooth_plugins.data import captions, file_types

        images = [n for n in names if os.path.splitext(n)[1].lower() in file_types.IMAGE_SUFFIXES]
        others = [n for n in names if captions.is_caption_file(n) and not self._hidden(n)]
        try:
            captions.collect(self.path, self.captions, images, others, self.caption_encoding)
        except JobError as error:
            yield Problem(("data", "path"), error.message, error.hint)

    def _hidden(self, name: str) -> bool:
        from dreambooth_plugins.data import file_types

        return file_types.is_hidden(name.rpartition("/")[2])

    def _glance(self, name: str) -> str:
        from dreambooth_plugins.data import file_types

        path = self.path / name
        if file_types.is_camera_raw(path):
            return "a camera's raw file: export it as JPEG"
        size = os.path.getsize(path) if os.path.exists(path) else 0  # a link that leads nowhere
        return file_types.why_no_image(path, size)[0]

    def _check_prompt(self, job: Job) -> Iterable[Problem]:
        from dreambooth_plugins.data.judging import names_subject

        at, subject = ("data", "prompt"), job.subject
        for name in unknown_placeholders(self.prompt):
            yield Problem(
                at,
                f"nothing fills in {{{name}}}",
                "Prompts know {identifier} and {class_noun}.",
            )
        filled = subject.fill(self.prompt)
        if not names_subject(filled, subject):
            yield Problem(
                at,
                f"the prompt does not name the subject ({subject.identifier!r})",
                'Write {identifier} into it: "a photo of {identifier} {class_noun}".',
            )
        # Without class rows a prompt may do without the noun, as textual inversion's usually does.
        if job.prior.has_rows() and subject.class_noun.casefold() not in filled.casefold():
            yield Problem(
                at,
                f"the prompt does not name the class ({subject.class_noun!r})",
                "Write {class_noun} into it; what the model knows of the class is the start.",
            )

    def scan(self, ctx: Context) -> Scan:
        """List the usable pictures, sorted by relative path; each file is decoded once.

        Raises `JobError` where no picture is usable, where a caption file cannot be read, and,
        with `broken: refuse`, where a picture is damaged.
        """
        from dreambooth_plugins.data import captions, masks, scanning

        scanning.require_folder(self.path)
        listed = scanning.list_files(self.path, self.recursive)
        names, beside = masks.apart(listed, self.mask)
        found = scanning.inspect(self.path, names, ctx)
        if self.mask is None:
            masks.warn_of_unread(listed, ctx)
        else:
            for message in masks.attach(self.path, self.mask, beside, found):
                ctx.warn(message)
        if self.broken == "refuse" and found.broken:
            rows = "\n".join(f"  {row.id}: {row.reason}" for row in found.broken[:10])
            raise JobError(
                f"data.path: {len(found.broken)} unusable pictures in {self.path}:\n{rows}",
                "Repair or remove them, or set data.broken to quarantine.",
            )
        ids = [item.id for item in found.items]
        texts = captions.collect(self.path, self.captions, ids, found.others, self.caption_encoding)
        rejected = [*self._explained(found, ids, ctx), *self._unused(texts, found.others)]
        if not found.items:
            raise scanning.nothing_usable(self.path, rejected, self.recursive)
        self._warn(texts, found.items, ctx)
        items = tuple(replace(item, caption=texts.by_id.get(item.id)) for item in found.items)
        return Scan(items, tuple(sorted(rejected, key=lambda row: row.id)))

    def _explained(self, found: Found, ids: list[str], ctx: Context) -> Iterable[Rejected]:
        """Say of files that are no pictures what they may be for, where it can be told."""
        from dreambooth_plugins.data import captions

        clutter = [row.id for row in found.rejected if row not in found.broken]
        told = captions.unread(clutter, ids)
        if told and self.captions != "none":
            ctx.warn(f"files that may hold captions, not read: {captions.shorten(told)}; "
                     + captions.WRITE)  # fmt: skip
        return [replace(row, reason=told.get(row.id, row.reason)) for row in found.rejected]

    def _unused(self, texts: Captions, others: list[str]) -> Iterable[Rejected]:
        for name, reason in texts.unused:
            yield Rejected(name, reason)
        told = {name for name, _ in texts.unused}
        for name in others:
            if name not in texts.read and name not in told:
                yield Rejected(name, f"not an image (captions: {self.captions} does not read it)")

    def _warn(self, texts: Captions, items: list[Item], ctx: Context) -> None:
        from dreambooth_plugins.data import captions, judging, scanning

        ids = [item.id for item in items]
        for message in (*texts.warnings, *judging.judge(texts.by_id, ids, ctx.job.subject)):
            ctx.warn(message)
        if texts.unused:
            ctx.warn("captions without a picture: " + captions.shorten(n for n, _ in texts.unused))
        scanning.warn_of(items, self.size, ctx)
        if numbered := scanning.repeats(ids):
            ctx.warn(
                f"the numbers of {captions.shorten(numbered)} mean nothing here: every picture "
                "counts once and trains with its caption or data.prompt, not with its folder's name"
            )
        if not self.recursive and (below := scanning.image_folders(self.path)):
            ctx.warn(
                f"{below.total()} pictures in folders inside {self.path} are not used "
                f"({captions.shorten(sorted(below))}); data.recursive takes them"
            )

    def variants(self, item: Item) -> int | None:
        """Return 1, or 2 with `flip` (0 plain, 1 mirrored); None with random crops."""
        if self.crop == "random":
            return None
        return 2 if self.flip else 1

    def load(self, item: Item, variant: int | None, rng: np.random.Generator) -> Sample:
        """Read a picture at the training size: the shorter side covers it, the rest is cropped.

        `variant` 0 is the centre crop, 1 the same mirrored. Without one, `crop` and `flip` are
        drawn from `rng` (top, left, then mirror). Raises `RunError` where the file is gone or no
        longer the one that was scanned.
        """
        from dreambooth_plugins.data import loading

        if variant is not None and variant not in (0, 1):
            raise ValueError(f"variant {variant} of a folder's picture (there are 0 and 1)")
        image = loading.read(item)
        room = loading.room(image, self.size)
        top, left = room[0] // 2, room[1] // 2
        mirror = variant == 1
        if variant is None:
            if self.crop == "random":
                top, left = (int(rng.integers(0, r, endpoint=True)) for r in room)
            mirror = self.flip and bool(rng.integers(0, 2))
        mask = loading.read_mask(item, self.mask in ("auto", "alpha"))
        return loading.crop(image, self.size, (top, left), mirror, mask)

    def pixels_key(self) -> dict[str, Any]:
        """Return what changes pixels; not the path or the prompts: items carry a content hash."""
        return {
            "kind": self.kind,
            "decoder": DECODER,
            "size": list(self.size),
            "crop": self.crop,
            "flip": self.flip,
            **({"mask": self.mask} if self.mask else {}),
        }
