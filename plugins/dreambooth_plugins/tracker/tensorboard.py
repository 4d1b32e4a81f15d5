"""TensorBoard: its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth import Tracker

if TYPE_CHECKING:
    from dreambooth.interfaces import Context, TrackerWriter


class TensorBoard(Tracker):
    """Write event files to `tensorboard/` in the run folder: numbers, samples, the job.

    Look at them with `tensorboard --logdir runs`: samples and the contact sheet under IMAGES, runs
    by their options under HPARAMS. A resumed run first cuts away the events that
    come after its checkpoint, so that each step is there once.
    """

    kind: Literal["tensorboard"] = "tensorboard"
    images: Literal["grid", "each", "none"] = "grid"
    """Samples as one grid, as a picture each, or not at all."""
    histograms: bool = False
    """Also write how the weights that train are spread, by part (`weights/unet`), wherever samples
    are drawn."""

    def open(self, ctx: Context, resume_step: int) -> TrackerWriter:
        """Cut the event file back to `resume_step` and go on after it."""
        from dreambooth_plugins.tracker.tensorboard_writer import TensorBoardWriter

        writer = TensorBoardWriter(
            ctx.folder / "tensorboard", resume_step, self.images, histograms=self.histograms
        )
        if resume_step == 0:
            writer.hyperparameters(ctx.job.name, ctx.job.resolved())
        return writer
