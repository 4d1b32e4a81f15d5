"""The content-keyed store: tensors named by everything they depend on, shared by all jobs."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dreambooth.errors import RunError
from dreambooth.files import cache_root, sweep, write_json, write_with

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from dreambooth.engine.devices import Devices
    from dreambooth.engine.reporting import Reporter

HOURS_OF_A_WRITE = 6
"""What is half written for longer was left by a process that was killed."""
FORMAT = 2
"""Raised when the same key would come to mean other bits, or files of another form."""
DIGEST = "sha256"
"""Name of a chunk's metadata that tells what its tensors must be."""


def content_key(key: Mapping[str, Any]) -> str:
    """Hash a key to 24 hex digits; the key must be plain JSON data."""
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class ChunkStore:
    """One entry: rows of tensors in chunks of fixed composition (see `Context.chunks`)."""

    def __init__(
        self,
        name: str,
        key: Mapping[str, Any],
        chunk_size: int,
        build: Callable[[Sequence[int]], Mapping[str, Tensor]],
        reporter: Reporter,
        total: int | None = None,
        root: Path | None = None,
        devices: Devices | None = None,
    ) -> None:
        whole = {"name": name, "chunk_size": chunk_size, "total": total, **key}
        self.key = f"{name}/{content_key(whole)}"
        self.folder = (root or cache_root()) / self.key
        self._chunk_size, self._build, self._total = chunk_size, build, total
        self._reporter, self._devices = reporter, devices
        self._open: dict[int, dict[str, Tensor]] = {}
        self._whole_key, self._begun = whole, False

    def row(self, index: int) -> dict[str, Tensor]:
        """Return row `index` of every tensor; builds its chunk if absent."""
        chunk, place = divmod(index, self._chunk_size)
        tensors = self._chunk(chunk)
        return {name: tensor[place] for name, tensor in tensors.items()}

    def present(self, count: int) -> int:
        """Return how many of rows 0..count-1 are on disk already."""
        chunks = [c for c in range(-(-count // self._chunk_size)) if self._file(c).exists()]
        return sum(len([i for i in self._indices(c) if i < count]) for c in chunks)

    def ensure(self, count: int, label: str) -> None:
        """Build what is missing of rows 0..count-1, with progress.

        Several processes share the work by chunk; all of them must call this. What another
        machine made is not seen where the cache folder is not shared: it is then made here too.
        """
        chunks = range(-(-count // self._chunk_size))
        if self._devices is not None and self._devices.world_size > 1:
            self._build_missing(chunks[self._devices.rank :: self._devices.world_size], label)
            self._devices.wait()
        self._build_missing(chunks, label)

    def _build_missing(self, chunks: Sequence[int], label: str) -> None:
        missing = [c for c in chunks if not self._file(c).exists()]
        if not missing:
            return
        sizes = [len(self._indices(c)) for c in missing]
        with self._reporter.progress(label, sum(sizes)) as progress:
            for chunk, size in zip(missing, sizes, strict=True):
                self._make(chunk)
                progress.advance(size)

    def forget(self, below: int) -> None:
        """Let go of open chunks all of whose rows are below `below` (files stay)."""
        for chunk in [c for c in self._open if (c + 1) * self._chunk_size <= below]:
            del self._open[chunk]

    def _file(self, chunk: int) -> Path:
        return self.folder / f"chunk-{chunk:06d}.safetensors"

    def _indices(self, chunk: int) -> list[int]:
        end = (chunk + 1) * self._chunk_size
        return list(
            range(chunk * self._chunk_size, end if self._total is None else min(end, self._total))
        )

    def _chunk(self, chunk: int) -> dict[str, Tensor]:
        if chunk not in self._open:
            self._open[chunk] = self._read(chunk)
        return self._open[chunk]

    def _read(self, chunk: int) -> dict[str, Tensor]:
        file = self._file(chunk)
        if file.exists():
            try:
                return _load(file, len(self._indices(chunk)))
            except (SafetensorError, OSError, ValueError) as error:
                self._reporter.warn(f"cache file {file} is damaged ({error}); it is built again")
        self._make(chunk)
        return _load(file, len(self._indices(chunk)))

    def _make(self, chunk: int) -> None:
        indices = self._indices(chunk)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self._build(indices).items()}
        for name, tensor in tensors.items():
            if len(tensor) != len(indices) or not tensor.isfinite().all():
                raise RunError(
                    f'{self.key}: "{name}" of rows {indices[0]}-{indices[-1]} is not finite or '
                    f"has {len(tensor)} rows",
                    "try train.precision: fp32; if that helps, report it with the model's name",
                )
        try:
            self._begin()
            marked = {DIGEST: digest(tensors)}
            write_with(self._file(chunk), lambda path: save_file(tensors, path, marked))
        except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
            said = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise RunError(
                f"cannot write the cache file {self._file(chunk)}: {said}",
                "make room, or name another folder in the environment variable DREAMBOOTH_CACHE",
            ) from error

    def _begin(self) -> None:
        """Before the first chunk that is written: clear up, and say what the entry is."""
        if self._begun:
            return
        sweep(self.folder, older_than=HOURS_OF_A_WRITE * 3600)
        if not (self.folder / "key.json").exists():
            write_json(self.folder / "key.json", self._whole_key)
        self._begun = True


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash the names, types, shapes and bits of tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _load(file: Path, rows: int) -> dict[str, Tensor]:
    """Read a chunk; `ValueError` where a good file holds something else than was written."""
    with safe_open(file, "pt") as opened:
        written = (opened.metadata() or {}).get(DIGEST)
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    if not tensors or written != digest(tensors):
        raise ValueError("its tensors are not those that were written")
    if any(tensor.dim() == 0 or len(tensor) != rows for tensor in tensors.values()):
        raise ValueError(f"it should hold {rows} rows")
    return tensors
