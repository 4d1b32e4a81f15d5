"""A run on disk: where everything lies, who owns it, what it left, and whether a job may go on."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError, RunError
from dreambooth.files import read_object, sizes, write_json, write_text
from dreambooth.helpers.text import redacted_in
from dreambooth.jobs.changes import as_now, differences, digests, is_moved
from dreambooth.runs import lock as run_lock
from dreambooth.runs.checkpoints import name_of, step_of
from dreambooth.runs.manifest import checked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from dreambooth.job import Job

logger = logging.getLogger("dreambooth")

HARMLESS = (
    "log",
    "samples",
    "checkpoints",
    "trackers",
    "metrics",
    "findings",
    "safety",
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
    "train.tf32",
    "train.cache",
    "train.gradient_checkpointing",
    "train.hang_timeout",
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
    def findings(self) -> Path:
        """How the run went by its own samples, in words."""
        return self.path / "findings.json"

    @property
    def evaluations(self) -> Path:
        """Folder of measured numbers, and of what was drawn for them (see `runs.evaluations`)."""
        return self.path / "evaluations"

    @property
    def timings(self) -> Path:
        """Wall-clock, apart from the metrics so that those can be compared bit for bit."""
        return self.path / "timings.jsonl"

    def export(self, kind: str, step: int | None = None) -> Path:
        """Folder of a further export, as the run was at `step` where one is given."""
        named = kind if step is None else f"{kind}-{name_of(step)}"
        return self.path / "exports" / named

    def step_exports(self) -> list[tuple[int, str, Path]]:
        """Return (step, kind, folder) of the exports of single steps; links are not the run's."""
        found = []
        for path in (self.path / "exports").glob("*-step-*"):
            kind, _, number = path.name.rpartition("-step-")
            step = step_of(path.with_name(f"step-{number}"))
            if kind and step is not None and path.is_dir() and not path.is_symlink():
                found.append((step, kind, path))
        return sorted(found)

    def listing(self, folder: Path) -> dict[str, int]:
        """Return name -> bytes of every file below a folder of this run."""
        place = folder.relative_to(self.path).as_posix()
        return {f"{place}/{name}": size for name, size in sizes(folder).items()}

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

    def begin(self, job: Job, text: str, processes: int) -> None:
        """Record the job of this life of the run, and how many processes share it."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.job, text)
        # What lay at the run's paths when it began; hashed once.
        inputs = self.read_manifest().get("inputs")
        inputs = digests(job, HARMLESS) if inputs is None else inputs
        self.update_manifest(job=job.resolved(), processes=processes, inputs=inputs)

    def identity(self) -> tuple[int, int]:
        """Return what tells this folder from another of its name."""
        found = os.stat(self.path)
        return found.st_dev, found.st_ino

    def require_same(self, identity: tuple[int, int]) -> None:
        """Raise `RunError` where the folder is gone, or another one has taken its place.

        Whatever is written makes the folders it needs: half a run would come to lie there.
        """
        try:
            if self.identity() == identity:
                return
        except FileNotFoundError:
            pass
        raise self.gone()

    def gone(self) -> RunError:
        """Return the error that tells of a folder that is no longer there."""
        return RunError(
            f"the run's folder is gone: {self.path} was deleted or moved while the run was at work",
            "if it was moved, move it back and run the same command again; what was learned since "
            "its last checkpoint is lost",
        )

    def free_aside(self) -> Path:
        """Return where an existing run is moved next."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        return aside

    def set_aside(self) -> Path:
        """Move an existing run away (`--fresh` deletes nothing) and return where it went."""
        aside = self.free_aside()
        self.path.rename(aside)
        return aside

    def lock(self, warn: Callable[[str], None] = logger.warning) -> AbstractContextManager[None]:
        """Own the run for the block; a crash leaves no lock behind. `RunError` if owned.

        `warn` is told where the file system has no locks (see `runs.lock`).
        """
        return run_lock.hold(self.path, warn)


def rows_of_a_step(job: Mapping[str, Any], processes: int) -> int:
    """Return the instance rows of one optimizer step of a resolved job."""
    train = job["train"]
    return int(train["batch_size"] * train["accumulation"] * processes)


def check_resumable(folder: RunFolder, job: Job, processes: int = 1) -> dict[str, tuple[Any, Any]]:
    """Return the harmless differences to the run's own job; `JobError` names the others.

    More steps are harmless only where neither rates nor stages depend on the end; batch size,
    accumulation and number of processes where their product stays the same; another path where
    the same lies there (for `changes.moved` sections whoever reads them has to compare).
    """
    manifest = folder.read_manifest()
    if (saved := manifest.get("job")) is None:
        return {}
    before = manifest.get("processes", 1)
    saved = as_now(saved, job, folder.path)
    changed = differences(saved, job.resolved())
    if before != processes:
        changed["processes"] = (before, processes)
    same_rows = rows_of_a_step(saved, before) == rows_of_a_step(job.resolved(), processes)

    def harmless(name: str) -> bool:
        if name == "train.steps":
            return not (job.lr_schedule.depends_on_end() or job.freezing.depends_on_end())
        if name in {"train.batch_size", "train.accumulation", "processes"}:
            return same_rows
        if name.split(".", 1)[0] in HARMLESS or name in HARMLESS_OPTIONS:
            return True
        return is_moved(name, job, changed[name][0], manifest.get("inputs", {}))

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
