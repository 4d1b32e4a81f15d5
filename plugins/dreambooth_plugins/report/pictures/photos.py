"""The photographs of the subject, cut as they were for training."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dreambooth.component import expand_variables
from dreambooth.errors import UserError
from dreambooth.files import read_limited
from dreambooth.interfaces import Subject
from dreambooth_plugins.data.captions import CaptionKind, collect
from dreambooth_plugins.data.images import ImageRejected, cover, decode, resize
from dreambooth_plugins.data.scanning import list_files
from dreambooth_plugins.report.document import MAX_PHOTOS, Photo
from dreambooth_plugins.report.pictures.thumbs import MAX_FILE, SIDE, encoded

if TYPE_CHECKING:
    from PIL import Image

    from dreambooth_plugins.report.pictures.thumbs import Pool
    from dreambooth_plugins.report.private import Scrub


FEW = 8
"""Photographs that are kept as large as the pictures."""


class _Folder(BaseModel):
    """What the job says of a folder of photographs; other sources may say more, or otherwise."""

    model_config = ConfigDict(extra="ignore")

    path: str
    prompt: str = ""
    resolution: int | tuple[int, int] = 512
    recursive: bool = False
    captions: CaptionKind = "none"
    crop: str = "center"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        side = self.resolution
        return (side, side) if isinstance(side, int) else side


def photos_of(manifest: dict[str, Any], pool: Pool, scrub: Scrub) -> tuple[list[Photo], list[str]]:
    """Return the photographs a run was trained on, and sentences on those that cannot be shown.

    They lie outside of the run's folder: only a file with the content the run recorded is shown.
    """
    names: dict[str, str] = manifest.get("images") or {}
    job = manifest.get("job") or {}
    if not names:
        return [], ["The run does not say which photographs it was trained on."]
    try:
        data = _Folder.model_validate(job.get("data"))
        subject = Subject.model_validate(job.get("subject"))
        root = Path(expand_variables(data.path))
    except (ValidationError, ValueError):
        return [], ["The photographs are not shown: they did not come from a folder."]
    captions = _captions(root, data, list(names))
    told = manifest.get("held_out")
    held = set(map(str, told)) if isinstance(told, list) else set()
    photos, gone = list[Photo](), 0
    for name, digest in list(names.items())[:MAX_PHOTOS]:
        picture = _as_trained(root / name, digest, data.size)
        if picture is None:
            gone += 1
            continue
        cut, size = picture
        height, width = data.size
        said = f"{size[0]}\u00a0×\u00a0{size[1]}, trained at {width}\u00a0×\u00a0{height}"
        prompt = subject.fill(captions.get(name) or data.prompt)
        # Many are seen small; they must not take the place of what the run drew.
        kept = pool.add(encoded(cut, SIDE if len(names) <= FEW else SIDE // 2))
        photos.append(Photo(scrub.words(name), kept, scrub.words(prompt), said, name in held))
    notes = []
    if gone:
        one = "photograph is" if gone == 1 else "photographs are"
        notes.append(f"{gone} {one} not shown: moved or changed since the run.")
    if len(names) > MAX_PHOTOS:
        notes.append(f"{MAX_PHOTOS} of {len(names)} photographs are shown.")
    if photos and data.crop != "center":
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


def _captions(root: Path, data: _Folder, names: list[str]) -> dict[str, str]:
    try:
        others = [name for name in list_files(root, data.recursive) if name not in names]
        return collect(root, data.captions, names, others).by_id
    except (UserError, OSError):
        return {}
