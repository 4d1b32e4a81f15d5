"""A run on disk: where everything lies, who owns it, and whether a job may go on with it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.component import Section
from dreambooth.errors import JobError, RunError
from dreambooth.files import read_object, write_json, write_text
from dreambooth.records import checked
from dreambooth.redact import redacted_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dreambooth.job import Job

HARMLESS = (
    "log",
    "samples",
    "checkpoints",
    "trackers",
    "metrics",
    "callbacks",
    "early_stop",
    "exports",
    "output",
)
"""Sections that may change between two lives of a run: they do not touch what is learned."""
HARMLESS_OPTIONS = (
    "train.workers",
    "train.nonfinite",
    "train.nonfinite_limit",
    "train.device",
    "train.threads",
    "train.deterministic",
    "train.cache",
    "train.gradient_checkpointing",
    "validation.every",
    "validation.batch_size",
)
"""Options that change numbers in their last bits at most (the manifest's machine says more)."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def job(self) -> Path:
        """The resolved job, defaults written out."""
        return self.path / "job.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, hashes, plugins, device: what the run was made with."""
        return self.path / "manifest.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of sample pictures."""
        return self.path / "samples"

    @property
    def final(self) -> Path:
        """What the user wanted."""
        return self.path / "final"

    @property
    def log(self) -> Path:
        """What was said while the run went on, with the time of day."""
        return self.path / "run.log"

    @property
    def timings(self) -> Path:
        """Wall-clock, apart from the metrics so that those can be compared bit for bit."""
        return self.path / "timings.jsonl"

    def export(self, kind: str) -> Path:
        """Folder of a further export."""
        return self.path / "exports" / kind

    def listing(self, folder: Path) -> dict[str, int]:
        """Return name -> bytes of every file below a folder of this run."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in files}

    def result_is_whole(self) -> bool:
        """Say whether the exports of a finished run still lie there as they were written."""
        result = self.read_manifest().get("result") or {}
        written: dict[str, int] = result.get("files", {})
        return bool(written) and all(map(self._is_whole, written, written.values()))

    def _is_whole(self, name: str, size: int) -> bool:
        """Say whether a file of the run is there; what a link leads out to is not the run's."""
        path = self.path / name
        inside = [path, *(p for p in path.parents if self.path in p.parents)]
        linked = any(map(os.path.islink, inside))
        return not linked and os.path.isfile(path) and os.path.getsize(path) == size

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, empty for a run that has none yet; `RunError` if it is damaged."""
        if not self.manifest.exists():
            return {}
        try:
            return checked(read_object(self.manifest))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.manifest} cannot be read: {error}",
                "restore it, or start anew with --fresh (the old run is kept beside)",
            ) from error

    def update_manifest(self, **values: Any) -> None:
        """Write `values` into the manifest, keeping the rest; secrets of the environment out of it.

        The job stays as it is: a later life of the run is held against it.
        """
        clean = {key: v if key == "job" else redacted_in(v) for key, v in values.items()}
        write_json(self.manifest, {**self.read_manifest(), **clean})

    def saved_job(self) -> dict[str, Any] | None:
        """Return the job this run was started with, as plain data."""
        return self.read_manifest().get("job")

    def begin(self, job: Job, text: str, processes: int) -> None:
        """Record the job of this life of the run, and how many processes share it."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.job, text)
        self.update_manifest(job=job.resolved(), processes=processes)

    def set_aside(self) -> Path:
        """Move an existing run away (`--fresh` deletes nothing) and return where it went."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(aside)
        return aside

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the run for the block; a crash leaves no lock behind. `RunError` if owned."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise JobError(
                f"cannot write into {self.path}: {error.strerror or error}",
                "name a folder you may write to in output (or -o output=...)",
            ) from error
        try:
            _lock_file(file, self.path)
            yield
        finally:
            os.close(file)


def _lock_file(file: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no flock; a second process is then not refused.
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(
            f"another process is running {path}",
            "wait for it, stop it, or give this job another name",
        ) from error


def _flatten(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for key, inner in value.items():
            out |= _flatten(inner, f"{at}.{key}" if at else key)
        return out
    return {at: value}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return dotted name -> (old, new) of what differs between two resolved jobs."""
    a, b = _flatten(dict(old)), _flatten(dict(new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def rows_of_a_step(job: Mapping[str, Any], processes: int) -> int:
    """Return the instance rows of one optimizer step of a resolved job."""
    train = job["train"]
    return int(train["batch_size"] * train["accumulation"] * processes)


def _later_sections(job: Job, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of sections a run's job lacks: it began before the program knew them."""
    absent = {k: f.default for k, f in type(job).model_fields.items() if k not in saved}
    sections = {k: v for k, v in absent.items() if isinstance(v, Section)}
    return {name: section.model_dump(mode="json") for name, section in sections.items()}


def check_resumable(folder: RunFolder, job: Job, processes: int = 1) -> dict[str, tuple[Any, Any]]:
    """Return the harmless differences to the run's own job; `JobError` names the others.

    More steps are harmless only where neither rates nor stages depend on the end;
    batch size, accumulation and number of processes where their product stays the same.
    """
    saved = folder.saved_job()
    if saved is None:
        return {}
    before = folder.read_manifest().get("processes", 1)
    changed = differences({**_later_sections(job, saved), **saved}, job.resolved())
    if before != processes:
        changed["processes"] = (before, processes)
    same_rows = rows_of_a_step(saved, before) == rows_of_a_step(job.resolved(), processes)

    def harmless(name: str) -> bool:
        if name == "train.steps":
            return not (job.lr_schedule.depends_on_end() or job.freezing.depends_on_end())
        if name in {"train.batch_size", "train.accumulation", "processes"}:
            return same_rows
        return name.split(".", 1)[0] in HARMLESS or name in HARMLESS_OPTIONS

    bad = {name: pair for name, pair in changed.items() if not harmless(name)}
    if bad:
        lines = "\n".join(f"  {name}: {old!r} -> {new!r}" for name, (old, new) in bad.items())
        rows = (
            "keep train.batch_size x train.accumulation x processes as it was, "
            if bad.keys() <= {"train.batch_size", "train.accumulation", "processes"}
            else ""
        )
        raise JobError(
            f"{folder.path} was started with another job:\n{lines}",
            f"{rows}give the job another name, undo the change, or start anew with --fresh "
            "(the old run is kept beside)",
        )
    return changed
