"""A whole model as a diffusers folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dreambooth.interfaces import ArtifactKind, Exporter
from dreambooth_plugins.exporter.options import Dtype
from dreambooth_plugins.exporter.usage import folder_usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dreambooth import Job
    from dreambooth.interfaces import Artifact, Check, Context, LoadedModel, ModelInfo


class Diffusers(Exporter):
    """A diffusers folder: opens with `StableDiffusionPipeline.from_pretrained`."""

    kind: Literal["diffusers"] = "diffusers"
    accepts: ClassVar[frozenset[ArtifactKind]] = frozenset({"weights"})
    reads_whole_model: ClassVar[bool] = True
    dtype: Dtype = "fp32"
    """Precision of the stored weights; fp16 and bf16 halve the size."""

    def write(
        self,
        artifact: Artifact,
        model: LoadedModel,
        dest: Path,
        ctx: Context,
        solver_config: Mapping[str, Any],
    ) -> None:
        """Write the model with the trained weights into `dest`."""
        model.save(dest, solver_config, artifact.tensors, self.dtype)

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Open the folder with diffusers and compare trained weights and predictions."""
        from dreambooth_plugins.exporter.diffusers_check import check_folder

        return check_folder(artifact.tensors, model, dest, ctx, self.dtype)

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the folder is opened."""
        return folder_usage(job)
