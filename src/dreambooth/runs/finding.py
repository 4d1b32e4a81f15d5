"""Finding a run from what a person names: its folder, or the job file it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.errors import JobError
from dreambooth.jobs import loading
from dreambooth.runs.folder import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.job import Job


def open_run(path: Path) -> tuple[RunFolder, Job]:
    """Return a run's folder and job; `JobError` where `path` is no run."""
    folder = RunFolder(path.absolute())
    if not path.is_dir():
        what = "a file, not a run's folder" if path.exists() else "not there"
        raise JobError(f"{path} is {what}", "name a run's folder, such as runs/my-dog")
    if not folder.job.is_file():
        raise JobError(
            f"{path} is not a run: it has no job.yaml",
            "name a run's folder, such as runs/my-dog (dbt run prints it)",
        )
    job = loading.load_job(folder.job)
    return folder, job.model_copy(update={"name": folder.path.name, "output": folder.path.parent})


def run_of(path: Path) -> tuple[RunFolder, Job]:
    """Return the run of a folder or of a job file; `JobError` where there is none yet."""
    if not path.is_file():
        return open_run(path)
    folder = RunFolder(loading.load_job(path).folder)
    if not folder.job.is_file():
        raise JobError(f"the run of {path} has not begun", f"train it first: dbt run {path}")
    return open_run(folder.path)
