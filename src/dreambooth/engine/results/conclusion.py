"""How a run went: its samples measured, and what the rules make of the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.engine.results.samples import photographs
from dreambooth.engine.results.sets import complete_sets, measure_sets
from dreambooth.errors import UserError
from dreambooth.files import write_json
from dreambooth.interfaces import RunRecord
from dreambooth.plugins import registry
from dreambooth.runs.evaluations import findings_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import Evaluation, FindingRule, Metric, ModelInfo, Scan
    from dreambooth.job import Job
    from dreambooth.runs.folder import RunFolder

METRICS = (
    "subject_similarity",
    "prompt_alignment",
    "prior_preservation",
    "perceptual_diversity",
    "drift",
    "copying",
)
"""What the rules look at, as far as it is installed and has its encoder."""


def rules_of(job: Job) -> Sequence[FindingRule]:
    """Return the job's rules; all installed ones where it says `auto`."""
    if job.findings != "auto":
        return job.findings
    kinds: Mapping[str, Any] = registry().kinds("finding")
    return [cls() for cls in kinds.values() if not _asks(cls)]


def _asks(cls: Any) -> bool:
    """Say whether a rule has options that only a job can give."""
    return any(f.is_required() for name, f in cls.model_fields.items() if name != "kind")


def metrics_of(job: Job, info: ModelInfo) -> list[Metric]:
    """Return the metrics that can be measured in this installation."""
    kinds: Mapping[str, Any] = registry().kinds("metric")
    found: list[Metric] = [kinds[name]() for name in METRICS if name in kinds]
    return [metric for metric in found if not list(metric.check(job, info))]


def conclude(ctx: EngineContext, folder: RunFolder, scan: Scan, info: ModelInfo) -> None:
    """Measure what a run drew while training and write `findings.json`.

    A run whose pictures are gone, or that has no encoder, is as good as it was: what cannot be
    judged is said, and no reason to fail.
    """
    job = ctx.job
    if not job.samples.every or job.findings == []:
        return
    metrics = metrics_of(job, info)
    if not metrics:
        ctx.warn(
            "the run is not judged: no encoder is installed "
            "(pip install 'dreambooth-trainer[judge]')"
        )
        return
    try:
        evaluations = measure_sets(ctx, folder, scan, metrics, complete_sets(folder), own=True)
        write_findings(ctx, folder, scan, evaluations)
    except (UserError, OSError) as error:
        ctx.warn(f"the run is not judged: {error}")


def write_findings(
    ctx: EngineContext, folder: RunFolder, scan: Scan, evaluations: Sequence[Evaluation]
) -> list[dict[str, str]]:
    """Ask the rules, and write what they say beside what they saw: problems first."""
    job = ctx.job
    named = zip([item.id for item in scan.items], photographs(ctx, scan), strict=False)
    record = RunRecord(job, evaluations, list(named))
    found = [
        {
            "id": rule.kind,
            "mark": finding.mark,
            "sentence": finding.sentence,
            "evidence": finding.evidence,
            "next": finding.next,
        }
        for rule in rules_of(job)
        for finding in rule.judge(record)
    ]
    found.sort(key=lambda finding: ("problem", "look", "good").index(finding["mark"]))
    seen = evaluations[-1].file.name if evaluations else ""
    write_json(findings_file(folder, seen), {"version": 1, "findings": found})
    return found
