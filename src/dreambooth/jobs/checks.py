"""What only shows when the parts of a job are looked at together. Never imports torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dreambooth.component import Problem
from dreambooth.errors import UserError
from dreambooth.files import unwritable
from dreambooth.helpers.scalars import never_logged
from dreambooth.helpers.text import dotted, quoted
from dreambooth.interfaces import Exporter
from dreambooth.interfaces.data import unknown_placeholders
from dreambooth.interfaces.exporter import AUTOMATIC
from dreambooth.jobs.diagnostics import Diagnostic, JobErrors
from dreambooth.jobs.identifiers import automatic_exporters
from dreambooth.plugins.faults import named_where_it_ends, refused
from dreambooth.plugins.slots import components

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.component import Component, Location
    from dreambooth.interfaces import ModelInfo
    from dreambooth.job import Job


@named_where_it_ends()
def preflight(job: Job) -> list[Problem]:
    """Return everything wrong with a job that can be known before anything heavy is loaded.

    Reads the model's JSON files, asks every component, then checks what slots need of each other.
    """
    problems: list[Problem] = []
    info: ModelInfo | None = None
    try:
        info = job.model.describe()
    except (UserError, OSError) as error:
        key = "source" if "source" in type(job.model).model_fields else "kind"
        problems.append(_told(error, ("model", key)))
    for at, component in components(job):
        problems += _ask(component, at, job, info)
    problems += _loss_needs(job, info)
    problems += _base_needs(job)
    problems += _size(job, info)
    problems += _exports(job)
    problems += _automatic(job, info)
    problems += _on_the_way(job)
    problems += _sample_prompts(job)
    problems += _plain_mistakes(job)
    problems += _validation(job)
    problems += _output(job)
    return list(dict.fromkeys(problems))


def require(job: Job) -> None:
    """Raise `JobErrors` where `preflight` finds anything."""
    if problems := preflight(job):
        raise JobErrors(
            Diagnostic(f"job: {dotted(p.at)}", None, None, p.message, p.hint, at=p.at)
            for p in problems
        )


def _ask(component: Component, at: Location, job: Job, info: ModelInfo | None) -> list[Problem]:
    try:
        found = list(component.check(job, info))
    except (UserError, OSError) as error:
        return [_told(error, at)]
    if odd := [item for item in found if not isinstance(item, Problem)]:
        raise refused(component, "check", f"gives {odd[0]!r:.60} where Problems are wanted")
    if isinstance(at[-1], str) and len(at) > 1:  # inside of another: it knows its own name alone
        found = [replace(p, at=(*at, *p.at[1:]) if p.at[:1] == at[-1:] else p.at) for p in found]
    return found


def _told(error: UserError | OSError, at: Location) -> Problem:
    """Return an error as a problem of the job: what the system refuses is the person's to mend."""
    if isinstance(error, UserError):
        return Problem(at, error.message, error.hint)
    where = f": {quoted(error.filename)}" if error.filename else ""
    return Problem(at, f"{error.strerror or error}{where}", "check that the path can be read")


def _loss_needs(job: Job, info: ModelInfo | None) -> Iterator[Problem]:
    needs, loss = job.loss.required(), f'loss kind "{job.loss.kind}"'
    if "class_rows" in needs and not job.prior.has_rows():
        yield Problem(
            ("loss",),
            f'{loss} needs class rows, and prior kind "{job.prior.kind}" brings none',
            "choose a prior that brings class images, or a loss that needs none",
        )
    if "snr" in needs and not job.scheduler.has_snr():
        yield Problem(
            ("loss",),
            f"{loss} weighs by the signal-to-noise ratio, which scheduler kind "
            f'"{job.scheduler.kind}" does not have',
            "switch that weighting off, or choose a scheduler with a noise ratio",
        )
    if "mask" in needs and not getattr(job.data, "mask", None):
        yield Problem(
            ("loss",),
            f'{loss} needs masks, and data kind "{job.data.kind}" gives none as it is set',
            "set the data source's mask option, or choose a loss that needs no masks",
        )
    if "trains_vae" in needs and info is not None and not _trains_vae(job, info):
        yield Problem(
            ("loss",),
            f'{loss} trains the VAE, which freezing kind "{job.freezing.kind}" keeps frozen',
            "let the freezing policy train the VAE, or choose another loss",
        )


def _base_needs(job: Job) -> Iterator[Problem]:
    """Hold what compares with the frozen base against a policy that does not keep it."""
    hint = job.freezing.base_hint()
    lacks = f'compares with the base, which freezing kind "{job.freezing.kind}" does not keep'
    if hint and job.loss.required() & {"reference", "class_reference"}:
        yield Problem(("loss",), f'loss kind "{job.loss.kind}" {lacks}', hint)
    if hint and job.prior.needs_base():
        yield Problem(("prior",), f'prior kind "{job.prior.kind}" {lacks}', hint)


def _trains_vae(job: Job, info: ModelInfo) -> bool:
    return bool(set(job.freezing.trained_parts(info)) & set(info.part_names("vae")))


def _size(job: Job, info: ModelInfo | None) -> Iterator[Problem]:
    if info is None:
        return
    unit = info.latent.multiple
    drawn = job.samples.entries if job.samples.every else ()
    sizes: dict[Location, tuple[int, int]] = {
        ("samples", "prompts", i): entry.pixels for i, entry in enumerate(drawn) if entry.pixels
    }
    for at, size in ({("data", "resolution"): job.data.size} | sizes).items():
        if wrong := [side for side in dict.fromkeys(size) if side % unit]:
            near = {s for side in wrong for s in (side // unit * unit, -(-side // unit) * unit)}
            yield Problem(
                at,
                f"{' and '.join(map(str, wrong))} is not a multiple of {unit}, which this model "
                "needs",
                f"the nearest sizes are {' or '.join(str(s) for s in sorted(near) if s)}",
            )


def _exports(job: Job) -> Iterator[Problem]:
    from dreambooth.plugins import registry

    artifacts = job.freezing.artifacts
    made = f'freezing kind "{job.freezing.kind}" ends in {" or ".join(sorted(artifacts))}'
    fitting = [
        kind
        for kind, cls in registry().kinds("exporter").items()
        if artifacts & getattr(cls, "accepts", frozenset())
    ]
    formats = job.exporting.formats
    if formats == "auto":
        if not artifacts & AUTOMATIC.keys():
            named = f": {', '.join(fitting)}" if fitting else "; no installed one does"
            hint = f"name an exporter that accepts it in exports{named}"
            yield Problem(("exports",), f"{made}, for which exports: auto has no format", hint)
    elif not formats or any(artifacts & exporter.accepts for exporter in formats):
        yield from _refusals(job, made)
    else:
        hint = f"fitting: {', '.join(fitting)}" if fitting else "no installed exporter fits"
        named = ", ".join(e.kind for e in formats)
        yield Problem(("exports",), f"{made}, which the exports ({named}) do not accept", hint)


def _automatic(job: Job, info: ModelInfo | None) -> Iterator[Problem]:
    """Ask the exporters that `auto` comes to, which stand nowhere in the job."""
    if job.exporting.formats == "auto" and job.freezing.artifacts & AUTOMATIC.keys():
        for exporter in automatic_exporters(job):
            yield from _ask(exporter, ("exports",), job, info)


def _refusals(job: Job, made: str) -> Iterator[Problem]:
    """Find single exporters that would write nothing, or something else than what was made."""
    for at, exporter in components(job):
        if not isinstance(exporter, Exporter):
            continue
        if not exporter.accepts & job.freezing.artifacts:
            yield Problem(
                at,
                f"{made}, which {exporter.kind} does not accept",
                "take it out of the list",
            )
        elif reason := exporter.refusal(job.freezing):
            yield Problem(
                at,
                f"{exporter.kind} cannot hold what the freezing policy makes: {reason}",
                "export it as merged, which every tool reads, or train with another method",
            )


def _on_the_way(job: Job) -> Iterator[Problem]:
    """Hold what `exports` says of steps against the run."""
    options = job.exporting
    if options.every > job.train.steps:
        yield Problem(
            ("exports", "every"),
            f"no step is a {options.every}th one: the run has {job.train.steps}",
            "export more often, or train for more steps",
        )
    elif options.every and not options.formats:
        yield Problem(
            ("exports", "every"), "there is no format to export in", "name one in exports.formats"
        )
    elif options.keep_last and not options.every:
        yield Problem(
            ("exports", "keep_last"),
            "nothing is exported before the end",
            "set exports.every, to 100 for example, or leave keep_last out",
        )


def _sample_prompts(job: Job) -> Iterator[Problem]:
    for number, entry in enumerate(job.samples.entries):
        for option in entry.options():
            if option not in type(job.sampler).model_fields:
                yield Problem(
                    ("samples", "prompts", number),
                    f'sampler "{job.sampler.kind}" has no option "{option}"',
                    "leave it out, or use another sampler",
                )
        for name in unknown_placeholders(entry.prompt):
            yield Problem(
                ("samples", "prompts", number),
                f"nothing fills in {{{name}}}",
                "prompts know {identifier} and {class_noun}",
            )


def _plain_mistakes(job: Job) -> Iterator[Problem]:
    if job.subject.identifier.casefold() == job.subject.class_noun.casefold():
        yield Problem(
            ("subject", "identifier"),
            f'the identifier is the class noun, "{job.subject.class_noun}": every one of the class '
            "would become your subject",
            "take a rare token that means nothing yet, such as ohwx",
        )
    if job.lr_schedule.warmup_steps >= job.train.steps:
        yield Problem(
            ("lr_schedule", "warmup_steps"),
            f"the warm-up of {job.lr_schedule.warmup_steps} steps is as long as the run "
            f"({job.train.steps}): the learning rate would never be reached",
            "shorten the warm-up, or train for more steps",
        )


def _output(job: Job) -> Iterator[Problem]:
    if why := unwritable(job.folder):
        hint = "name a folder you may write to in output (or -o output=...)"
        yield Problem(("output",), f"cannot write into {job.folder}: {why}", hint)


def _validation(job: Job) -> Iterator[Problem]:
    if job.validation.holdout and not job.validation.every:
        yield Problem(
            ("validation", "holdout"),
            "pictures are held out of training, and nothing is evaluated on them",
            "set validation.every, to 50 for example, or leave holdout out",
        )
    best = job.checkpoints.keep_best
    if best is not None:
        problem = never_logged(job, best.metric, ("checkpoints", "keep_best", "metric"))
        yield from [problem] if problem else []
