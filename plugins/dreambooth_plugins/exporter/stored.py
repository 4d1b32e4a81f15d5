"""What formats of weights share: the precision they are stored in, and that they are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dreambooth import Problem
from dreambooth.interfaces import Exporter
from dreambooth_plugins.common.dtypes import Dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth import Job
    from dreambooth.interfaces import ModelInfo


class Stored(Exporter):
    """A format whose numbers may be halved. No kind of its own."""

    layout: ClassVar[str] = ""
    """The layout in `ModelInfo.layouts` it is written in; empty: diffusers' own."""
    dtype: Dtype = "fp32"
    """Precision of the stored weights; fp16 and bf16 halve the size."""

    def stored_bytes(self, trained: int, whole: int) -> int:
        """Return the bytes in the stored precision."""
        full = super().stored_bytes(trained, whole)
        return full if self.dtype == "fp32" else full // 2

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find a family whose files cannot be written so, or not be compared."""
        if info is None:
            return
        if not info.pipeline:
            yield Problem(
                ("exports",),
                f"{self.kind} compares its files with diffusers' own pipeline, and the family "
                f"{info.family} has none",
                "use an exporter that the family's plugin brings",
            )
            return
        unknown = f"models of the family {info.family} have no such layout here"
        if self.layout and (reason := info.layouts.get(self.layout, unknown)):
            yield Problem(
                ("exports",),
                f"{self.kind} cannot hold this model: {reason}",
                "export it in diffusers' layout (diffusers; lora or merged for an adapter)",
            )
