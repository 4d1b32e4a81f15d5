"""End a run whose validation loss has settled (DVAR)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dreambooth import Callback, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dreambooth import Job
    from dreambooth.interfaces import Context, ModelInfo, Observer


class Dvar(Callback):
    """End the run when the loss on the fixed batch has levelled off.

    Deterministic Variance Evaluation (Voronov et al. 2023, "Is This Loss Informative?"): stop as
    soon as Var(values of the last `window` steps) / Var(all values) < `threshold`. It needs no
    held-out pictures.
    """

    kind: Literal["dvar"] = "dvar"
    metric: str = Field(default="validation/loss_instance", min_length=1)
    """The number to watch: a loss on the fixed batch."""
    window: Annotated[int, Field(ge=2)] = 440
    """Steps that count as the last ones; the paper's value for DreamBooth with LoRA."""
    threshold: float = Field(default=0.4, gt=0.0, lt=1.0)
    """Stop below this ratio of variances; lower trains longer."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Report a number that is never logged, and a window that cannot work in this job."""
        from dreambooth_plugins.callback.curve import metric_problems, place

        yield from metric_problems(job, self, self.metric)
        at = (*place(job, self), "window")
        every = job.validation.every
        if self.metric.startswith("validation/") and every and self.window // every < 2:
            yield Problem(
                at,
                f"one evaluation every {every} steps puts fewer than two values into {self.window} "
                "steps, and one value has no variance",
                f"set validation.every to {max(1, self.window // 10)} or less, or widen the window",
            )
        if self.window >= job.train.steps:
            yield Problem(
                at,
                f"the run of {job.train.steps} steps is over before {self.window} steps could be "
                "compared with what came before",
                "shorten the window, or train for more steps",
            )

    def open(self, ctx: Context) -> Observer:
        """Begin with an empty curve."""
        from dreambooth_plugins.callback.curve import CurveObserver

        return CurveObserver(self.metric, self.reason)

    def reason(self, steps: Sequence[int], values: Sequence[float]) -> str:
        """Say why the run may end after these values; empty while it may not.

        The last values are those of steps > s - window, s being the newest step: while the curve
        is no longer than the window the ratio is 1, and nothing is decided. Variances are those of
        the population (mean squared distance from the mean).
        """
        from statistics import pvariance

        newest = steps[-1] if steps else 0
        last = [v for s, v in zip(steps, values, strict=True) if s > newest - self.window]
        if len(last) < 2:
            return ""
        late, whole = pvariance(last), pvariance(values)
        if late >= self.threshold * whole:
            return ""
        return (
            f"{self.metric} has settled: its variance over the last {self.window} steps is "
            f"{late / whole:.2g} of that over all {newest}, below {self.threshold:g}"
        )
