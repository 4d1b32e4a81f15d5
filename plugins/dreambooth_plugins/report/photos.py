"""The photographs of the subject, cut as they were for training."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from dreambooth.errors import UserError
from dreambooth.files import read_limited
from dreambooth_plugins.data.captions import collect
from dreambooth_plugins.data.images import ImageRejected, cover, decode, resize
from dreambooth_plugins.data.scanning import list_files
from dreambooth_plugins.report.document import MAX_PHOTOS, Photo
from dreambooth_plugins.report.thumbs import MAX_FILE, encoded

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from dreambooth.job import Job
    from dreambooth_plugins.data.captions import CaptionKind
    from dreambooth_plugins.report.private import Scrub
    from dreambooth_plugins.report.thumbs import Pool


def photos_of(
    manifest: dict[str, Any], job: Job | None, pool: Pool, scrub: Scrub
) -> tuple[list[Photo], list[str]]:
    """Return the photographs a run was trained on, and sentences on those that cannot be shown.

    They lie outside of the run's folder: only a file with the content the run recorded is shown.
    """
    names: dict[str, str] = manifest.get("images") or {}
    root = getattr(job.data, "path", None) if job is not None else None
    if not names:
        return [], ["The run does not say which photographs it was trained on."]
    if job is None or root is None:
        return [], ["The photographs are not shown: what read them is not installed here."]
    captions = _captions(root, job, list(names))
    held = set(manifest.get("held_out") or ())
    photos, gone = list[Photo](), 0
    for name, digest in list(names.items())[:MAX_PHOTOS]:
        picture = _as_trained(root / name, digest, job.data.size)
        if picture is None:
            gone += 1
            continue
        cut, size = picture
        height, width = job.data.size
        said = f"{size[0]} × {size[1]}, trained at {width} × {height}"
        prompt = job.subject.fill(captions.get(name) or job.data.prompt)
        data = pool.add(encoded(cut))
        photos.append(Photo(scrub.words(name), data, scrub.words(prompt), said, name in held))
    notes = []
    if gone:
        one = "photograph is" if gone == 1 else "photographs are"
        notes.append(f"{gone} {one} not shown: moved or changed since the run.")
    if len(names) > MAX_PHOTOS:
        notes.append(f"{MAX_PHOTOS} of {len(names)} photographs are shown.")
    if photos and getattr(job.data, "crop", "center") != "center":
        notes.append("The middle of each photograph is shown; other parts were trained on too.")
    return photos, notes


def _as_trained(
    path: Path, digest: str, size: tuple[int, int]
) -> tuple[Image.Image, tuple[int, int]] | None:
    """Return the middle crop of a photograph and its own (width, height)."""
    try:
        data = read_limited(path, MAX_FILE)
        if hashlib.sha256(data).hexdigest() != digest:
            return None
        image = decode(data)
    except (OSError, ValueError, ImageRejected):
        return None
    height, width = cover((image.height, image.width), size)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    cut = resize(image, (height, width)).crop((left, top, left + size[1], top + size[0]))
    return cut, (image.width, image.height)


def _captions(root: Path, job: Job, names: list[str]) -> dict[str, str]:
    kind: CaptionKind = getattr(job.data, "captions", "none")
    try:
        others = [n for n in list_files(root, getattr(job.data, "recursive", False))]
        return collect(root, kind, names, [n for n in others if n not in names]).by_id
    except (UserError, OSError):
        return {}
