"""The exporter slot: how what a run made becomes files other tools read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from dreambooth.component import Component
from dreambooth.interfaces.freezing import ArtifactKind

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.component import AnyJob
    from dreambooth.component.model_info import ModelInfo
    from dreambooth.interfaces.context import Context
    from dreambooth.interfaces.freezing import Artifact, FreezingPolicy
    from dreambooth.interfaces.model import LoadedModel


AUTOMATIC: Mapping[ArtifactKind, str] = {
    "weights": "diffusers",
    "adapter": "lora",
    "embedding": "embedding",
}
"""Kind of exporter that `exports: auto` takes for an artifact. Fixed, not looked up: a package
that is merely installed changes no run."""
INSTEAD: Mapping[str, str] = {"lora": "merged"}
"""What it takes where that one refuses what the policy makes."""


@dataclass(frozen=True)
class Check:
    """The outcome of loading an export back."""

    ok: bool
    message: str
    """One line for the person: what was compared and how far apart it was."""
    figures: Mapping[str, float] = field(default_factory=dict)


class Exporter(Component):
    """A file format. Hook: `register_exporters`."""

    accepts: ClassVar[frozenset[ArtifactKind]] = frozenset({"weights"})
    """Kinds of artifact this format can hold."""
    reads_whole_model: ClassVar[bool] = False
    """Whether `verify` opens a whole model beside the live one: memory that the plan counts."""

    def refusal(self, policy: FreezingPolicy) -> str:
        """Return why this format cannot express what a policy makes; empty where it can.

        Asked by validate, so without torch.
        """
        return ""

    def stored_bytes(self, trained: int, whole: int) -> int:
        """Return about how many bytes an export takes, for the plan.

        `trained` counts the numbers that train, `whole` those of the whole model.
        """
        return 4 * (whole if self.reads_whole_model else trained)

    def write(
        self,
        artifact: Artifact,
        model: LoadedModel,
        dest: Path,
        ctx: Context,
        solver_config: Mapping[str, Any],
    ) -> None:
        """Write into the new, empty folder `dest`. The engine renames it into place.

        `artifact.metadata` also holds what the engine knows of the run: `steps`, `images` (their
        number) and `captions` (prompt -> number of pictures). `ctx.job.name` names the file; of a
        step on the way it says the step.
        """
        raise NotImplementedError  # abstract

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Load the files back as another tool would and compare them with the live model."""
        raise NotImplementedError  # abstract

    def usage(self, job: AnyJob, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how other tools open what was written, in Markdown, for the model card.

        `files` are the names in the export's folder. The default says nothing.
        """
        return ""
