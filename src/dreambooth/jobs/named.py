"""Components that a command names: a format with options, `blip`, `{kind: blip, model: folder}`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import ValidationError

from dreambooth.component import Section, escape_variables
from dreambooth.errors import JobError
from dreambooth.helpers.text import did_you_mean, known_words
from dreambooth.interfaces import Action, Captioner, Masker, SafetyChecker
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.document import Document
from dreambooth.jobs.identifiers import chosen_exporters
from dreambooth.jobs.loading import load_job
from dreambooth.jobs.overrides import overridden
from dreambooth.jobs.wording import explain
from dreambooth.plugins import Slot, registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dreambooth.component import Component
    from dreambooth.interfaces import Exporter
    from dreambooth.job import Job


class Named(Section):
    """What options of commands name; they are called as these fields are."""

    captions: Annotated[Captioner, Slot("captioner")] | None = None
    masks: Annotated[Masker, Slot("masker")] | None = None
    safety: Annotated[SafetyChecker, Slot("safety")] | None = None


def named(option: str, text: str, model: Path | None = None, job: Job | None = None) -> Any:
    """Return the component that an option names; `JobErrors` in the words of a job's faults.

    `model` fills the option of that name; relative paths start at the working folder. Its `check`
    is asked about `job`, which is None for pictures without one.
    """
    given = [f"{option}={text}"]
    if model is not None:
        given.append(f"{option}.model={escape_variables(str(model.absolute()))}")
    try:
        document = overridden(Document("", {}), given, Named)
        made = Named.model_validate_json(
            json.dumps(document.data), strict=True, context={"base": Path.cwd()}
        )
    except ValidationError as error:
        raise _as_options(option, explain(error, document, Named)) from None
    except JobErrors as errors:
        raise _as_options(option, errors.diagnostics) from None
    component: Component | None = getattr(made, option)
    if component is None:
        raise JobError(f"--{option} names nothing", _known(option))
    for problem in component.check(job, None):
        raise JobError(f"--{option} {component.kind}: {problem.message}", problem.hint)
    return component


def named_checker(text: str, job: Job) -> SafetyChecker | None:
    """Return the checker that `--safety` means: another action of the job's own, or another one."""
    if text not in get_args(Action):
        checker: SafetyChecker = named("safety", text, job=job)
        return checker
    if job.safety is None and text != "off":
        raise JobError(f"--safety {text}: the run's job names no checker", _known("safety"))
    return job.safety and job.safety.model_copy(update={"action": text})


def _known(option: str) -> str:
    slot = {"captions": "captioner", "masks": "masker"}.get(option, option)
    kinds = ", ".join(registry().kinds(slot))
    return f'name one of: {kinds}; with options: "{{kind: ..., ...}}"'


def _as_options(option: str, found: Any) -> JobErrors:
    """Say `--masks u2net` where a job's fault would say `-o masks=u2net`."""
    return JobErrors(
        replace(
            d,
            file=d.file.replace(f"-o {option}.model=", "--model ").replace(
                f"-o {option}=", f"--{option} "
            ),
            message=d.message.replace(f'"{option}" needs', "needs").replace(f"{option}.", ""),
            hint=d.hint.replace(f"{option}.", ""),
        )
        for d in found
    )


def named_exporter(file: Path, job: Job, kind: str, options: Sequence[str] = ()) -> Exporter:
    """Return the exporter of a kind, with options (`dtype=fp16`) checked as in a run's job `file`.

    Raises `JobError` for an unknown kind (naming the known ones), for options it has not, and
    with the reason where it cannot hold what the run's freezing policy makes.
    """
    kinds = registry().kinds("exporter")
    if kind not in kinds:
        why = registry().why_missing("exporter", kind)
        known = known_words(sorted(kinds))
        near = did_you_mean(kind, kinds)
        hint = why or (known if near.startswith("known") else f"{near} {known}")
        raise JobError(f'there is no format "{kind}"', hint)
    exporter = _with_options(file, kind, options)
    _check_fit(job, exporter, kinds)
    return exporter


def _with_options(file: Path, kind: str, options: Sequence[str]) -> Exporter:
    """Read the options through the run's own job, so that types and typos are told as there."""
    given = [f"exports=[{{kind: {kind}}}]", *(f"exports.0.{option}" for option in options)]
    try:
        job = load_job(file, given)
    except JobErrors as errors:
        raise JobErrors(
            replace(
                d,
                file=d.file.replace("-o exports.0.", "-o "),
                message=d.message.replace("exports.0.", ""),
                hint=d.hint.replace("exports.0.", "").replace("section.key=value", "key=value"),
            )
            for d in errors.diagnostics
        ) from None
    [exporter] = chosen_exporters(job)
    return exporter


def _check_fit(job: Job, exporter: Exporter, kinds: Mapping[str, type[Component]]) -> None:
    policy, format_ = job.freezing, exporter.kind
    made = " or ".join(sorted(policy.artifacts))
    if not exporter.accepts & policy.artifacts:
        others = ", ".join(_accepting(kinds, policy.artifacts)) or "no installed one"
        raise JobError(
            f"{format_} cannot hold what this run made: {policy.kind} freezing ends in {made}, "
            f"{format_} takes {' or '.join(sorted(exporter.accepts))}",
            f"formats that can: {others}",
        )
    if reason := exporter.refusal(policy):
        others = ", ".join(k for k in _accepting(kinds, policy.artifacts) if k != format_)
        raise JobError(
            f"{format_} cannot hold what this run made: {reason}", f"other formats: {others}"
        )
    for problem in exporter.check(job, job.model.describe()):
        raise JobError(problem.message, problem.hint)


def _accepting(kinds: Mapping[str, Any], artifacts: frozenset[Any]) -> Iterable[str]:
    return sorted(k for k, cls in kinds.items() if artifacts & cls.accepts)
