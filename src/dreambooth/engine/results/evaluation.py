"""A trained run measured: pictures of fixed prompts and seeds, before and after, through metrics.

Pictures lie in `evaluations/pictures/` of the run, a folder for each set of prompts and seeds, and
are drawn once; where numbers lie is in `runs.evaluations`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth.component.previews import SamplePrompt
from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.results.conclusion import write_findings
from dreambooth.engine.results.draw import step_of
from dreambooth.engine.results.safety import active
from dreambooth.engine.results.samples import (
    Picture,
    draw_entries,
    read_pictures,
    read_record,
    seed_of,
    write_pictures,
)
from dreambooth.engine.results.sets import (
    complete_sets,
    measure_sets,
    measure_step,
    write_evaluations,
)
from dreambooth.engine.results.weights import open_step, open_trained
from dreambooth.engine.watching.failures import explained
from dreambooth.errors import JobError, RunError
from dreambooth.runs.checkpoints import list_checkpoints
from dreambooth.runs.evaluations import digest
from dreambooth.runs.finding import open_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dreambooth.engine.reporting import Reporter
    from dreambooth.interfaces import Evaluation, LoadedModel, Metric, Scan
    from dreambooth.job import Job
    from dreambooth.runs.folder import RunFolder

UNRELATED = ("a photo of a house", "a photo of a tree", "a photo of a cup", "a photo of a car")
"""What `drift` looks at: prompts that have nothing to do with the subject."""


def evaluate_run(
    path: Path,
    metrics: Sequence[Metric],
    reporter: Reporter,
    *,
    prompts: Sequence[SamplePrompt] | None = None,
    per_prompt: int = 4,
    step: int | None = None,
    all_steps: bool = False,
) -> list[Evaluation]:
    """Measure a run's result, one of its checkpoints, or all samples it drew while training.

    `prompts` are taken beside one of the class and some unrelated ones, the job's own by default.
    With `all_steps` nothing is drawn: the samples of the run are measured as they lie there.
    Raises `UserError` for what is missing, before anything is drawn.
    """
    folder, job = open_run(path)
    sets = complete_sets(folder) if all_steps else []
    if not all_steps:
        _require_weights(folder, step)
    with ExitStack() as stack:
        stack.enter_context(explained(job, folder))
        devices = stack.enter_context(open_devices(job.train))
        recorded = folder.read_manifest().get("machine", {}).get("precision")
        precision = precision_of(job, devices.device, recorded)
        ctx = EngineContext(job, devices.device, precision, folder.path, reporter, devices)
        scan = job.data.scan(ctx)
        if all_steps:
            found = measure_sets(ctx, folder, scan, metrics, sets)
        else:
            found = _one_step(ctx, folder, scan, metrics, prompts, per_prompt, step)
        write_findings(ctx, folder, scan, found)
        return found


def _one_step(
    ctx: EngineContext,
    folder: RunFolder,
    scan: Scan,
    metrics: Sequence[Metric],
    prompts: Sequence[SamplePrompt] | None,
    per_prompt: int,
    step: int | None,
) -> list[Evaluation]:
    drawing = Drawing(ctx.job, tuple(evaluation_prompts(ctx.job, prompts)), per_prompt)
    pictures, before, at = _drawn(ctx, folder, drawing, step)
    settings = {"prompts": len(drawing.entries), "images_per_prompt": per_prompt}
    made = measure_step(ctx, scan, metrics, at, pictures, before, settings)
    return write_evaluations(folder, [made], drawing.id)


@dataclass(frozen=True)
class Drawing:
    """What is drawn of every step."""

    job: Job
    entries: Sequence[SamplePrompt]
    per_prompt: int

    @property
    def wanted(self) -> list[tuple[str, int]]:
        """The prompt and seed of each picture."""
        return [
            (self.job.subject.fill(entry.prompt), seed_of(self.job, entry, i, k))
            for i, entry in enumerate(self.entries)
            for k in range(self.per_prompt)
        ]

    @property
    def facts(self) -> dict[str, Any]:
        """What else decides how they look, the step apart."""
        facts = {"sampler": self.job.sampler.key(), "size": list(self.job.data.size)}
        checker = active(self.job.safety, self.job)
        return {**facts, "checker": checker.key()} if checker else facts

    @property
    def id(self) -> str:
        """Tells these pictures from others: each set keeps a folder of its own."""
        own = [entry.model_dump(mode="json", exclude={"prompt", "seed"}) for entry in self.entries]
        return digest([self.wanted, own, self.facts])


def evaluation_prompts(job: Job, prompts: Sequence[SamplePrompt] | None) -> list[SamplePrompt]:
    """Return what is drawn: the asked prompts, one of the class, and some that are unrelated."""
    found = list(prompts if prompts is not None else job.samples.entries)
    if not any("{identifier}" in e.prompt for e in found):
        found.insert(0, SamplePrompt(prompt="a photo of {identifier} {class_noun}"))
    if not any("{class_noun}" in e.prompt and "{identifier}" not in e.prompt for e in found):
        found.append(SamplePrompt(prompt="a photo of a {class_noun}"))
    noun = job.subject.class_noun.lower().split()
    others = [text for text in UNRELATED if text.split()[-1] not in noun]
    return [*found, *(SamplePrompt(prompt=text) for text in others[:3])]


def _require_weights(folder: RunFolder, step: int | None) -> None:
    steps = [at for at, _ in list_checkpoints(folder.checkpoints)]
    ended = step_of(folder, "final") if folder.result_is_whole() else None
    known = sorted({*steps, *([ended] if ended else [])})
    if not known:
        raise RunError(
            f"{folder.path} has neither a result nor a checkpoint",
            "run the job first, at least up to its first checkpoint",
        )
    if step is not None and step not in known:
        raise JobError(
            f"{folder.path} keeps no weights of step {step}",
            f"it has those of {', '.join(map(str, known))}; --all-steps measures the samples that "
            "were drawn while it trained",
        )


def _drawn(
    ctx: EngineContext,
    folder: RunFolder,
    drawing: Drawing,
    step: int | None,
) -> tuple[list[Picture], list[Picture], int]:
    """Return the pictures of the trained and of the untrained model, and the step they are of."""
    newest = max((at for at, _ in list_checkpoints(folder.checkpoints)), default=0)
    ended = step_of(folder, "final") if folder.result_is_whole() else 0
    at = step or ended or newest
    before = _kept(ctx, folder, drawing, 0, lambda: ctx.job.model.open(ctx))

    def trained() -> LoadedModel:
        return open_trained(ctx, folder)[0] if step is None else open_step(ctx, folder, at).model

    return _kept(ctx, folder, drawing, at, trained), before, at


def _kept(
    ctx: EngineContext,
    folder: RunFolder,
    drawing: Drawing,
    step: int,
    open_model: Callable[[], LoadedModel],
) -> list[Picture]:
    """Return the pictures of a step: those that lie there from before where all of them do."""
    job = ctx.job
    facts = {"step": step, **drawing.facts}
    where = folder.evaluations / "pictures" / drawing.id / f"step-{step:06d}"
    found = read_pictures(where)
    if [(p.prompt, p.seed) for p in found] == drawing.wanted and were_drawn(where, facts):
        return found
    model = open_model()
    schedule = job.scheduler.open(model.info)
    label = f"Drawing {'the untrained base' if step == 0 else f'step {step}'}"
    pictures = draw_entries(ctx, model, schedule, drawing.entries, drawing.per_prompt, label=label)
    write_pictures(where, pictures, drawing.per_prompt, facts)
    return pictures


def were_drawn(where: Path, facts: dict[str, Any]) -> bool:
    """Say whether pictures lying there were drawn with these settings."""
    return all(
        all(entry.get(name) == value for name, value in facts.items())
        for entry in read_record(where)
    )
