"""Weights & Biases: its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dreambooth import Tracker
from dreambooth_plugins.common.extras import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth import Job, Problem
    from dreambooth.interfaces import Context, ModelInfo, TrackerWriter


class Wandb(Tracker):
    """Send numbers and samples to Weights & Biases.

    Log in with wandb's own `wandb login` or WANDB_API_KEY: a job holds no key. A resumed run goes
    on in the same wandb run; steps it does again after an interruption appear there twice, with
    the same values. Charts are drawn over `step`, the optimizer step.
    """

    kind: Literal["wandb"] = "wandb"
    project: str = "dreambooth"
    """wandb project."""
    entity: str | None = None
    """wandb user or team; null takes the account's default."""
    mode: Literal["online", "offline", "disabled"] = "online"
    """`offline` writes to the run folder only, for `wandb sync` later."""
    tags: list[str] = Field(default=[])
    """Tags of the wandb run."""
    run_name: str | None = None
    """Name of the wandb run; null takes the job's name."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find that wandb is not installed, without importing it."""
        yield from missing("wandb", "wandb", ("trackers", job.trackers.index(self)))

    def open(self, ctx: Context, resume_step: int) -> TrackerWriter:
        """Start the wandb run, or go on with the one this run folder belongs to."""
        from dreambooth_plugins.tracker.wandb_writer import WandbWriter

        return WandbWriter(
            ctx.folder,
            **self.model_dump(exclude={"kind", "run_name"}),
            name=self.run_name or ctx.job.name,
            config=ctx.job.resolved(),
        )
