"""Default rules that say how a run went."""

from __future__ import annotations

from dreambooth import FindingRule, hookimpl
from dreambooth_plugins.finding.measured import (
    ClassChanged,
    Copies,
    Learned,
    PromptsIgnored,
    TooFew,
)
from dreambooth_plugins.finding.photographs import AlikePhotographs


@hookimpl
def register_findings() -> list[type[FindingRule]]:
    """Bring the rules in the order in which they are told."""
    return [Learned, Copies, ClassChanged, PromptsIgnored, AlikePhotographs, TooFew]
