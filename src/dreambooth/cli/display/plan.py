"""The plan as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.console import say
from dreambooth.helpers.units import file_size, shown_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from dreambooth.engine.cost.plan import Plan
    from dreambooth.engine.cost.residency import Phase
    from dreambooth.job import Job

SHOWN_PROMPTS = 3
PHASES: Mapping[Phase, str] = {
    "encoding": "encoding images",
    "class images": "drawing class images",
    "class pictures": "decoding class images",
    "texts": "encoding prompts",
    "training": "training",
    "validation": "validation",
    "drawing": "drawing samples",
    "export": "export",
}
"""What a person is told of the phases of a run."""


def gigabytes(count: int) -> str:
    """Write a number of bytes."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def show_plan(console: Console, job: Job, plan: Plan) -> None:
    """Print what a run will do, train and cost."""
    from rich.table import Table

    from dreambooth.helpers.text import one_line

    def line(name: str, text: str) -> None:
        say(console, f"{name:<13} {one_line(text)}", indent=14)

    line("run", f"{job.name} -> {shown_path(plan.folder)}")
    if plan.resumes_at:
        line("", f"goes on from step {plan.resumes_at}")
    line("images", images_text(plan))
    for name in plan.held_out:
        line("", f"held out: {name}")
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
    for label, text in between_steps(job, plan).items():
        line(label, text)
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
    if m.copy:
        line("", f"a frozen copy of the base {gigabytes(m.copy)}")
    most = plan.largest
    line("", f"at most {gigabytes(most.total)}: {PHASES[most.phase]}")
    others = (p for p in plan.phases if p.phase not in ("training", most.phase))
    line("", ", ".join(f"{PHASES[p.phase]} {gigabytes(p.total)}" for p in others))


def between_steps(job: Job, plan: Plan) -> dict[str, str]:
    """Return what is done before and between steps, by its label."""
    texts = {"class images": class_text(plan), "samples": samples_text(job, plan)}
    if plan.evaluations:
        texts["validation"] = validation_text(job, plan)
    texts["checkpoints"] = checkpoints_text(job, plan)
    if plan.exported_steps:
        texts["exports"] = exports_text(job, plan)
    return texts


def images_text(plan: Plan) -> str:
    """Count the pictures by what becomes of them."""
    held, left_out = len(plan.held_out), len(plan.scan.rejected)
    apart = f", {held} held out" if held else ""
    return f"{len(plan.scan.items) - held} used{apart}, {left_out} left out"


def class_text(plan: Plan) -> str:
    """Say what the prior costs."""
    if not plan.class_pictures:
        return f"none to draw; {plan.class_note}" if plan.class_note else "none to draw"
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


def validation_text(job: Job, plan: Plan) -> str:
    """Say what the loss on the fixed batch costs."""
    whose = "held-out" if plan.held_out else "training"
    return (
        f"{plan.evaluation_rows} rows of {whose} pictures, every {job.validation.every} steps; "
        f"together about {plan.evaluation_steps:.0f} training steps"
    )


def checkpoints_text(job: Job, plan: Plan) -> str:
    """Say how often checkpoints are written, what one takes, and which are kept."""
    options = job.checkpoints
    also = " and at each new best" if options.keep_best else ""
    kept = [f"the newest {options.keep_last}"]
    if options.keep_every:
        kept.append(f"every {options.keep_every}th")
    if options.keep_best:
        kept.append(f"the best by {options.keep_best.metric}")
    listed = f"{', '.join(kept[:-1])} and {kept[-1]}" if len(kept) > 1 else kept[0]
    size = gigabytes(plan.checkpoint_bytes)
    often = "by the clock" if options.every == "auto" else f"every {options.every} steps"
    return f"{often}{also}, {size} each, {listed} are kept"


def exports_text(job: Job, plan: Plan) -> str:
    """Say at which steps the result is exported on the way, what one takes, and which stay."""
    last = job.exporting.keep_last
    kept = f"the newest {last} are kept" if last else "all are kept"
    size = file_size(plan.export_bytes)
    return f"every {job.exporting.every} steps, {plan.exported_steps} of them, {size} each, {kept}"
