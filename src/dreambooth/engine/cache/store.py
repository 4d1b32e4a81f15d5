"""The content-keyed store: tensors named by what they are, shared by all jobs."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dreambooth.engine.cache.entry import MADE, Entry, can_finish, choose, difference, read_made
from dreambooth.engine.devices.machine import threads_of
from dreambooth.errors import RunError
from dreambooth.files import cache_root, sweep, write_json, write_with

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from dreambooth.engine.devices.processes import Devices
    from dreambooth.engine.reporting import Reporter

HOURS_OF_A_WRITE = 6
"""What is half written for longer was left by a process that was killed."""
FORMAT = 3
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
        made: Mapping[str, Any] | None = None,
        pins: Mapping[str, Any] | None = None,
    ) -> None:
        """`made` says how this run makes entries, `pins` which ones its earlier lives used."""
        whole = {"name": name, "total": total, **key}
        self._stem, self._root = f"{name}/{content_key(whole)}", root or cache_root()
        self._now = {"batch": chunk_size, **(made or {})}
        self._pin = next(iter(self._own_pins(pins or {}).items()), None)
        self._entry: Entry | None = None
        self._ensured = 0
        self._build, self._total = build, total
        self._reporter, self._devices = reporter, devices
        self._open: dict[int, dict[str, Tensor]] = {}
        self._whole: set[int] = set()
        self._whole_key, self._begun = whole, False

    @property
    def key(self) -> str:
        """Name of the entry in the store (see `Chunks.key`)."""
        return self._settled().name

    @property
    def folder(self) -> Path:
        """The entry's folder."""
        return self._root / self.key

    @property
    def _chunk_size(self) -> int:
        return int(self._settled().made["batch"])

    def _own_pins(self, pins: Mapping[str, Any]) -> dict[str, Any]:
        """Return the pins of this key; names come from a file, and are held to their form."""
        begin = f"{self._stem}-"
        return {k: v for k, v in pins.items() if k.startswith(begin) and k[len(begin) :].isalnum()}

    def _settled(self, count: int | None = None) -> Entry:
        """Return the entry, chosen once: for the rows that are asked for first."""
        if self._entry is None:
            self._entry = self._chosen(self._total or count or 1)
        return self._entry

    def _chosen(self, count: int) -> Entry:
        there = self._there(count)
        if self._pin is not None:
            name, pin = self._pin
            if name in there or can_finish(pin["made"], self._now):
                return there.get(name) or Entry(name, pin["made"])
        return choose(there.values(), self._stem, self._now, count)

    def _there(self, count: int) -> dict[str, Entry]:
        """Return the entries of this key that are on disk, by name."""
        beside = self._root / self._stem
        there = {}
        for folder in sorted(beside.parent.glob(f"{beside.name}-*")):
            if (made := read_made(folder)) is not None:
                size, names = made["batch"], {file.name for file in folder.glob("chunk-*")}
                whole = [c for c in range(-(-count // size)) if chunk_name(c) in names]
                rows = sum(min(size, count - c * size) for c in whole)
                name = f"{self._stem.rsplit('/', 1)[0]}/{folder.name}"
                there[name] = Entry(name, made, rows)
        return there

    def pin(self) -> dict[str, Any]:
        """Return what a manifest records: how the entry was made, and the hash of its rows."""
        entry = self._settled()
        record = {"made": dict(entry.made), "rows": self._ensured}
        return {**record, "digest": self.hash_of(self._ensured)}

    def hash_of(self, count: int) -> str:
        """Hash the bits of rows 0..count-1, by what each of their chunks says of itself."""
        found = hashlib.sha256()
        for chunk in range(-(-count // self._chunk_size)):
            with safe_open(self._file(chunk), "pt") as opened:
                found.update(str((opened.metadata() or {}).get(DIGEST)).encode())
        return found.hexdigest()

    def _hold_to_pin(self) -> None:
        """An earlier life of the run used these rows: they must be the same, to the bit."""
        if self._pin is None:
            if self._entry and (apart := difference(self._entry.made, self._now)):
                self._reporter.info(
                    f"{self.key} was made with {apart}: numbers are exact for this entry"
                )
            return
        (name, pin), self._pin = self._pin, None
        if name != self.key:
            self._reporter.warn(
                f"{name}, which this run began with, is gone and cannot be made here as it was "
                f"(with {difference(pin['made'], self._now)}): numbers can differ in their last "
                "bits"
            )
        elif self._ensured >= pin["rows"] and self.hash_of(pin["rows"]) != pin["digest"]:
            raise RunError(
                f"the store's entry {self.folder} is not the one this run began with",
                "delete that folder to have it made again, or start anew with --fresh",
            )

    def row(self, index: int) -> dict[str, Tensor]:
        """Return row `index` of every tensor; builds its chunk if absent."""
        chunk, place = divmod(index, self._chunk_size)
        tensors = self._chunk(chunk)
        return {name: tensor[place] for name, tensor in tensors.items()}

    def reread(self, index: int) -> dict[str, Tensor]:
        """Return row `index` as `row` does, and keep nothing of its chunk in memory.

        A chunk is held against its digest when it is first read.
        """
        chunk, place = divmod(index, self._chunk_size)
        if chunk not in self._whole:
            row = {name: tensor.clone() for name, tensor in self.row(index).items()}
            self._whole.add(chunk)
            self._open.pop(chunk, None)
            return row
        with safe_open(self._file(chunk), "pt") as opened:
            return {name: opened.get_slice(name)[place].clone() for name in opened.keys()}

    def present(self, count: int) -> int:
        """Return how many of rows 0..count-1 are on disk already."""
        self._settled(count)
        chunks = [c for c in range(-(-count // self._chunk_size)) if self._file(c).exists()]
        return sum(len([i for i in self._indices(c) if i < count]) for c in chunks)

    def ensure(self, count: int, label: str) -> None:
        """Build what is missing of rows 0..count-1, with progress.

        Several processes share the work by chunk; all of them must call this. What another
        machine made is not seen where the cache folder is not shared: it is then made here too.
        `RunError` where an earlier life of the run used other bits.
        """
        if self._entry is None and self._devices is not None:
            self._entry = self._devices.share(self._settled(count))
        self._settled(count)
        chunks = range(-(-count // self._chunk_size))
        if self._devices is not None and self._devices.world_size > 1:
            self._build_missing(chunks[self._devices.rank :: self._devices.world_size], label)
            self._devices.wait()
        self._build_missing(chunks, label)
        self._ensured = max(self._ensured, count)
        self._hold_to_pin()

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
        return self.folder / chunk_name(chunk)

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
        with threads_of(self._settled().made.get("threads")):
            built = self._build(indices)
        tensors = {k: v.detach().cpu().contiguous() for k, v in built.items()}
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
            write_json(self.folder / MADE, dict(self._settled().made))
            write_json(self.folder / "key.json", self._whole_key)
        self._begun = True


def chunk_name(chunk: int) -> str:
    """Return the name of a chunk's file."""
    return f"chunk-{chunk:06d}.safetensors"


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
