"""Rules over the photographs themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dreambooth import FindingRule
from dreambooth.interfaces import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.interfaces import RunRecord


class AlikePhotographs(FindingRule):
    """Whether photographs are almost the same: pHash and dHash within 6 of 64 bits."""

    kind: Literal["alike_photographs"] = "alike_photographs"
    bits: int = Field(default=6, ge=0, le=32)
    """Bits of 64 in which both hashes may differ."""

    def judge(self, record: RunRecord) -> Sequence[Finding]:
        """Name the first pair, and count the others."""
        from dreambooth.helpers.alike import can_compare, near_duplicates

        if not can_compare():
            return []
        pairs = list(near_duplicates([image for _, image in record.photographs], self.bits))
        if not pairs:
            return []
        i, j, apart, mirrored = pairs[0]
        one, other = (record.photographs[k][0] for k in (i, j))
        more = f", and {len(pairs) - 1} more pairs" if len(pairs) > 1 else ""
        flipped = ", one of them mirrored" if mirrored else ""
        return [
            Finding(
                "look",
                f"{one} and {other} are almost the same{flipped}{more}: five different views "
                "teach more than ten alike.",
                f"{apart} of 64 bits apart",
                "Leave one of them out, or take photographs from other sides.",
            )
        ]
