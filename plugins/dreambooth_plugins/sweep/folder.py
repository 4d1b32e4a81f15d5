"""A study on disk: its definition, its template, a folder a trial, claims, and what was best.

sweeps/<name>/
  study.json      the sweep with defaults written out; no password
  template.yaml   the template as it was when the study began, paths absolute
  journal.log     Optuna's journal, where no database is the storage
  trials/trial-0003/   a run like any other: job.yaml, metrics.jsonl, samples, checkpoints, final
  claims/trial-0003/   the lock of whoever works on that trial
  best/job.yaml   the best trial as a job to run (with two objectives: one a trial of the front)
  results.json    every trial: state, values, what they gave, or the error
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dreambooth import JobError
from dreambooth.files import read_object, write_json, write_text
from dreambooth.runs.folder import RunFolder
from dreambooth_plugins.sweep.checking import Sweep, is_whole, trials_of
from dreambooth_plugins.sweep.file import SweepFile
from dreambooth_plugins.sweep.space import Dimension
from dreambooth_plugins.sweep.storage import without_password

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

FREE = ("trials", "retries", "storage", "grace", "output", "job")
"""What may change between two commands: nothing of it touches the trials that are done."""


@dataclass(frozen=True)
class StudyFolder:
    """Paths of one study."""

    path: Path

    @property
    def definition(self) -> Path:
        """The sweep as the study holds it."""
        return self.path / "study.json"

    @property
    def template(self) -> Path:
        """The template as the study holds it."""
        return self.path / "template.yaml"

    @property
    def journal(self) -> Path:
        """Optuna's journal."""
        return self.path / "journal.log"

    @property
    def trials(self) -> Path:
        """Folder of the trials' runs."""
        return self.path / "trials"

    @property
    def best(self) -> Path:
        """Folder of the best jobs."""
        return self.path / "best"

    @property
    def results(self) -> Path:
        """Every trial and its outcome."""
        return self.path / "results.json"

    def claim(self, trial: int, warn: Callable[[str], None]) -> AbstractContextManager[None]:
        """Own a trial for the block; `RunError` where another worker does."""
        return RunFolder(self.path / "claims" / trial_name(trial)).lock(warn)


def trial_name(number: int) -> str:
    """Return the name of a trial's run."""
    return f"trial-{number:04d}"


def begin(sweep: Sweep) -> StudyFolder:
    """Write a study's definition, or hold the sweep against the one that is there.

    `JobError` where it is another one: the trials of two definitions are not comparable.
    """
    from dreambooth.api import job_text

    folder = StudyFolder(sweep.file.folder)
    said = plain(sweep.file)
    text = job_text(sweep.job)
    if folder.definition.is_file():
        before = read_object(folder.definition)["sweep"]
        changed = [k for k in said if k not in FREE and before.get(k) != said[k]]
        if folder.template.read_text(encoding="utf-8") != text:
            changed.append("job")
        if changed:
            raise JobError(
                f"{folder.path} was begun by another sweep: {', '.join(changed)} changed",
                "give the sweep another name, or undo the change",
            )
    else:
        write_text(folder.template, text)
    write_json(folder.definition, {"version": 1, "sweep": said})
    return folder


def plain(sweep: SweepFile) -> dict[str, Any]:
    """Return a sweep as plain data without a password."""
    storage = without_password(sweep.storage)
    return {**sweep.model_dump(mode="json"), "storage": storage}


def open_study(path: Path) -> tuple[StudyFolder, Sweep]:
    """Return the study in a folder, as it was begun; `JobError` where there is none."""
    from dreambooth.api import load

    folder = StudyFolder(path.absolute())
    if not folder.definition.is_file():
        raise JobError(
            f"{path} is no study: it has no study.json", "dbt sweep sweep.yaml makes one"
        )
    try:
        said = read_object(folder.definition)["sweep"]
        file = SweepFile.model_validate({**said, "output": folder.path.parent})
    except (OSError, ValueError, KeyError, ValidationError) as error:
        raise JobError(f"{folder.definition} cannot be read: {error}", "restore it") from error
    job = load(folder.template)
    space = [Dimension(k, axis, is_whole(job, k, axis)) for k, axis in file.space.items()]
    return folder, Sweep(file, job, space, trials_of(file, space)[0])
