"""A format by its name and options, held against what a run made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.helpers.text import did_you_mean, known_words
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.identifiers import chosen_exporters
from dreambooth.jobs.loading import load_job
from dreambooth.plugins import registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from dreambooth.component import Component
    from dreambooth.interfaces import Exporter
    from dreambooth.job import Job


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
