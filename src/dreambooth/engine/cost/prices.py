"""What previews and results of a run cost, counted from the job alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.jobs.identifiers import chosen_exporters
from dreambooth.jobs.samplers import drawn_together

if TYPE_CHECKING:
    from dreambooth.interfaces import NoiseSchedule, PriorCost
    from dreambooth.job import Job


def exported_steps(job: Job) -> int:
    """Return at how many steps on the way the result is exported."""
    return job.train.steps // job.exporting.every if job.exporting.every else 0


def export_bytes(job: Job, trained: int, whole: int) -> int:
    """Return what the files of a result take, in all the job's formats together.

    `trained` and `whole` count parameters.
    """
    return sum(exporter.stored_bytes(trained, whole) for exporter in chosen_exporters(job))


def class_rows(price: PriorCost, cached: int) -> float:
    """Return what drawing the class images that are missing costs, in denoiser rows."""
    return price.forwards * (1 - cached / price.pictures) if price.pictures else 0.0


def sample_sets(job: Job) -> int:
    """Return how often a whole run draws its previews: first before training."""
    return 1 + -(-job.train.steps // job.samples.every) if job.samples.every else 0


def sample_count(job: Job) -> int:
    """Return how many preview pictures a whole run draws."""
    return sample_sets(job) * len(job.samples.prompts) * job.samples.per_prompt


def sample_rows(job: Job, schedule: NoiseSchedule) -> float:
    """Return what all previews of a run cost, in denoiser rows of training size."""
    rows = 0.0
    for some in drawn_together(job, job.samples.entries):
        solver = schedule.solver_config(some.size, some.sampler.sampling_steps())
        rows += len(some.numbers) * some.area(job) * some.sampler.forwards(solver)
    return sample_sets(job) * rows * job.samples.per_prompt
