"""Pictures from wherever fsspec reaches: http, s3, gs, a zip file, another machine."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

from dreambooth import DataSource, JobError, Problem, hookimpl
from dreambooth.files import cache_root, write_bytes
from dreambooth.interfaces import Item, Rejected, Sample, Scan
from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from dreambooth import Job
    from dreambooth.interfaces import Context, ModelInfo

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class RemotePictures(DataSource):
    """The pictures of a remote folder, fetched once when a run begins and kept by their content.

    A text beside a picture (`dog.txt` of `dog.png`) is its caption.
    """

    kind: Literal["remote_pictures"] = "remote_pictures"
    url: str = Field(min_length=1)
    """The folder: `https://host/dogs/` (a page that links to the pictures), `s3://bucket/dogs`."""
    limit: int = Field(default=64, ge=1, le=100_000)
    """How many pictures at most."""
    max_mib: int = Field(default=64, ge=1)
    """Largest file that is fetched, in MiB."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """A folder of this machine has a source of its own; nothing is asked for over a network."""
        if "://" not in self.url:
            hint = "use data: {kind: folder, path: ...} for a folder of this machine"
            yield Problem(("data", "url"), f"{self.url} is no address", hint)

    def scan(self, ctx: Context) -> Scan:
        """Fetch the folder and list its pictures in order."""
        files = dict(self._fetched())
        found, rejected = [], []
        for name in sorted(n for n in files if n.lower().endswith(SUFFIXES))[: self.limit]:
            content = files[name]
            path = keep(content, name)
            try:
                size = size_of(path)
            except OSError as error:
                rejected.append(Rejected(name, str(error)))
                continue
            text = files.get(f"{name.rpartition('.')[0]}.txt")
            caption = text.decode("utf-8", "replace").strip() if text is not None else None
            digest = hashlib.sha256(content).hexdigest()
            found.append(Item(name, path, digest, size, caption))
        if not found:
            raise JobError(f"{self.url} has no pictures", f"endings: {', '.join(SUFFIXES)}")
        return Scan(tuple(found), tuple(rejected))

    def _fetched(self) -> Iterator[tuple[str, bytes]]:
        """Yield names and contents of the folder's pictures and texts."""
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(self.url)
            for address in sorted(system.ls(path, detail=False)):
                name = address.rstrip("/").rpartition("/")[2]
                if name.lower().endswith((*SUFFIXES, ".txt")):
                    yield name, self._read(system, address)
        except (OSError, ImportError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise JobError(
                f"{self.url} cannot be read: {reason}",
                "check the address; some need a package beside fsspec (aiohttp, s3fs, gcsfs)",
            ) from error

    def _read(self, system: Any, address: str) -> bytes:
        most = self.max_mib << 20
        with system.open(address, "rb") as opened:
            content: bytes = opened.read(most + 1)
        if len(content) > most:
            raise ValueError(f"{address} is larger than {self.max_mib} MiB (max_mib)")
        return content

    def load(self, item: Item, variant: int | None, rng: np.random.Generator) -> Sample:
        """Read a picture from what was kept, as large as the job says."""
        import numpy as np
        from dreambooth.interfaces import RowGeometry
        from PIL import Image, ImageOps

        height, width = self.size
        assert item.path is not None
        with Image.open(item.path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (width, height))
        return Sample(np.asarray(fitted), RowGeometry(item.size, (0, 0), self.size))


def keep(content: bytes, name: str) -> Path:
    """Write a file into the cache under its content's hash, unless it lies there; return it."""
    suffix = name.rpartition(".")[2].lower()
    path = cache_root() / "remote" / f"{hashlib.sha256(content).hexdigest()}.{suffix}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    return path


def size_of(path: Path) -> tuple[int, int]:
    """Return a picture's (height, width); `OSError` where it is none."""
    from PIL import Image

    with Image.open(path) as image:
        image.verify()
        return image.height, image.width


@hookimpl
def register_data_sources() -> list[type[DataSource]]:
    """Bring the source."""
    return [RemotePictures]
