"""Jobs made in Python as job files, for tests that start a process of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.jobs.loading import dump_job

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.job import Job


def write(job: Job, path: Path) -> Path:
    """Write a job, defaults included, and return the file."""
    path.write_text(dump_job(job))
    return path
