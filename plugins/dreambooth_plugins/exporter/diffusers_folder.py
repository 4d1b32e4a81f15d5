"""A whole model as a diffusers folder: what was trained, or adapters folded in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dreambooth.interfaces.freezing import ArtifactKind
from dreambooth_plugins.exporter.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dreambooth import Job
    from dreambooth.interfaces import Artifact, Check, Context, LoadedModel, ModelInfo


class WholeFolder(Stored):
    """A diffusers folder. No kind of its own: a base for those of the two kinds of artifact."""

    reads_whole_model: ClassVar[bool] = True

    def write(
        self,
        artifact: Artifact,
        model: LoadedModel,
        dest: Path,
        ctx: Context,
        solver_config: Mapping[str, Any],
    ) -> None:
        """Write the whole model with what was trained into `dest`."""
        from dreambooth_plugins.exporter.merging import learned_rows, trained_weights

        weights = {**trained_weights(artifact, model), **learned_rows(artifact)}
        model.save(dest, solver_config, weights, self.dtype)

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Open the folder with diffusers and compare trained weights and what it draws."""
        from dreambooth_plugins.exporter.diffusers_check import check_folder

        return check_folder(artifact, model, dest, ctx, self.dtype)

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the folder is opened."""
        from dreambooth_plugins.exporter.usage import folder_usage

        return folder_usage(job, info)


class Diffusers(WholeFolder):
    """A diffusers folder: opens with the pipeline's `from_pretrained`."""

    kind: Literal["diffusers"] = "diffusers"
    accepts: ClassVar[frozenset[ArtifactKind]] = frozenset({"weights"})


class Merged(WholeFolder):
    """An adapter, a learned word or both put into the base: a folder like that of full tuning.

    Opens everywhere, and is as large as the base. A word is in its tokenizer and text encoder.
    """

    kind: Literal["merged"] = "merged"
    accepts: ClassVar[frozenset[ArtifactKind]] = frozenset({"adapter", "embedding"})
