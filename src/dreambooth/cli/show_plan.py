"""The plan as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from dreambooth.engine.plan import Plan
    from dreambooth.job import Job

SHOWN_PROMPTS = 3


def gigabytes(count: int) -> str:
    """Write a number of bytes."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def show_plan(console: Console, job: Job, plan: Plan) -> None:
    """Print what a run will do, train and cost."""
    from rich.table import Table

    def line(name: str, text: str) -> None:
        console.print(f"{name:<13} {text}", markup=False, highlight=False, soft_wrap=True)

    line("run", f"{job.name} -> {plan.folder}")
    if plan.resumes_at:
        line("", f"goes on from step {plan.resumes_at}")
    line("images", f"{len(plan.scan.items)} used, {len(plan.scan.rejected)} left out")
    for rejected in plan.scan.rejected:
        line("", f"left out: {rejected.id}: {rejected.reason}")
    for prompt in plan.prompts[:SHOWN_PROMPTS]:
        line("prompt", repr(prompt))
    if len(plan.prompts) > SHOWN_PROMPTS:
        line("", f"and {len(plan.prompts) - SHOWN_PROMPTS} more")
    train = job.train
    effective = train.batch_size * train.accumulation
    line(
        "steps",
        f"{train.steps} of {effective} instance rows ({plan.rows} rows a forward), "
        f"{plan.epochs:.1f} epochs",
    )
    line("class images", class_text(plan))
    line("samples", samples_text(job, plan))
    checkpoints = f"every {job.checkpoints.every} steps, {gigabytes(plan.checkpoint_bytes)} each"
    line("checkpoints", f"{checkpoints}, the newest {job.checkpoints.keep_last} are kept")
    columns = ("component", "parameters", "trainable", "share", "memory")
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for part in plan.parts:
        share = f"{100 * part.trainable / part.parameters:.2f} %" if part.trainable else "frozen"
        held = gigabytes(part.bytes) if part.bytes else "released once cached"
        table.add_row(part.name, f"{part.parameters:,}", f"{part.trainable:,}", share, held)
    console.print()
    console.print(table)
    console.print()
    for note in plan.notes:
        line("freezing", note)
    m = plan.memory
    line("memory", f"about {gigabytes(m.total)} while training on {plan.device} ({plan.precision})")
    line(
        "",
        f"weights {gigabytes(m.weights)}, gradients {gigabytes(m.gradients)}, optimizer "
        f"{gigabytes(m.optimizer)}, average {gigabytes(m.average)}, activations "
        f"{gigabytes(m.activations)}",
    )


def class_text(plan: Plan) -> str:
    """Say what the prior costs."""
    if not plan.class_pictures:
        return "none to draw"
    text = f"{plan.class_pictures}, {plan.class_cached} of them cached"
    if plan.class_steps:
        text += f"; drawing the rest costs about {plan.class_steps:.0f} training steps"
    return f"{text}; {plan.class_note}" if plan.class_note else text


def samples_text(job: Job, plan: Plan) -> str:
    """Say what the previews cost."""
    if not plan.sample_pictures:
        return "none"
    return (
        f"{plan.sample_pictures} pictures, every {job.samples.every} steps; together about "
        f"{plan.sample_steps:.0f} training steps"
    )
