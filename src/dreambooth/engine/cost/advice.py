"""Too little memory: which options would help most, and what each would save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import RunError
from dreambooth.interfaces import Prior

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from dreambooth.component import Section
    from dreambooth.interfaces import FreezingPolicy
    from dreambooth.job import Job

GIB = 2**30


def advise(job: Job, error: BaseException, whole: str) -> RunError:
    """Return the error to show: what failed, then the options in the order of what they save."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    drawing = drawing_option(job, error.__traceback__)
    if drawing is not None:
        section, size = drawing
        hint = f"{section}.batch_size: {max(1, size // 2)} instead of {size} draws fewer at once"
        return RunError(f"memory ran out while pictures were drawn: {said}", f"{hint}\n{whole}")
    total = make_plan(job, Quiet()).memory.total
    saved = sorted(savings(job, total), key=lambda pair: -pair[1])
    lines = [
        f"{option} would save about {size / GIB:.2f} GiB" for option, size in saved if size > 0
    ]
    lines = lines or ["use a smaller data.resolution or another freezing policy"]
    return RunError(
        f"memory ran out; training this job takes about {total / GIB:.2f} GiB: {said}",
        "\n".join([*lines, whole]),
    )


def drawing_option(job: Job, trace: TracebackType | None) -> tuple[str, int] | None:
    """Return the section and its batch size where memory ran out while pictures were drawn."""
    found = None
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        if isinstance(owner, Prior) and "batch_size" in type(owner).model_fields:
            found = ("prior", int(getattr(owner, "batch_size")))  # noqa: B009
        elif frame.f_code.co_name == "draw_pictures":
            found = ("samples", job.samples.batch_size)
        trace = trace.tb_next
    return found


def savings(job: Job, total: int) -> Iterator[tuple[str, int]]:
    """Yield options that need less memory, and the bytes each saves, counted as the plan does."""
    for option, changed in smaller(job):
        yield option, total - make_plan(changed, Quiet()).memory.total


def smaller(job: Job) -> Iterator[tuple[str, Job]]:
    """Yield jobs that need less memory, each with the option that makes it so."""
    train = job.train
    if not train.gradient_checkpointing:
        yield (
            "train.gradient_checkpointing: true",
            changed(job, train={"gradient_checkpointing": True}),
        )
    if train.precision in {"fp32", "auto"}:
        yield "train.precision: bf16", changed(job, train={"precision": "bf16"})
    if train.batch_size > 1:
        update = {"batch_size": 1, "accumulation": train.accumulation * train.batch_size}
        named = f"train: {{batch_size: 1, accumulation: {update['accumulation']}}}"
        yield named, changed(job, train=update)
    if train.ema is not None:
        yield "train.ema: null", changed(job, train={"ema": None})
    if (lighter := job.optimizer.lighter()) is not None:
        named = f"optimizer.kind: {lighter.kind}"
        yield named, job.model_copy(update={"optimizer": lighter})
    trained: Sequence[str] = getattr(job.freezing, "train", ())
    if len(trained) > 1:
        only = trained[0]
        yield f"freezing.train: [{only}]", changed(job, freezing={"train": (only,)})
    if (policy := job.freezing.lighter()) is not None and _can_export(job, policy):
        yield f"freezing.kind: {policy.kind}", job.model_copy(update={"freezing": policy})
    yield from _fewer_at_once(job)


def _can_export(job: Job, policy: FreezingPolicy) -> bool:
    """Say whether the job has a file format for what another policy makes."""
    formats = job.exporting.formats
    return formats == "auto" or any(
        e.accepts & policy.artifacts and not e.refusal(policy) for e in formats
    )


def _fewer_at_once(job: Job) -> Iterator[tuple[str, Job]]:
    """Yield jobs that draw and evaluate one row after the other."""
    drawn = job.prior.cost(job).at_once
    if drawn > 1 and "batch_size" in type(job.prior).model_fields:
        yield "prior.batch_size: 1", changed(job, prior={"batch_size": 1})
    if job.samples.every and job.samples.batch_size > 1:
        yield "samples.batch_size: 1", changed(job, samples={"batch_size": 1})
    if job.validation.every and job.validation.batch_size > 1:
        yield "validation.batch_size: 1", changed(job, validation={"batch_size": 1})


def changed(job: Job, **sections: dict[str, Any]) -> Job:
    """Return the job with options of sections replaced."""
    update: dict[str, Section] = {
        name: getattr(job, name).model_copy(update=options) for name, options in sections.items()
    }
    return job.model_copy(update=update)
