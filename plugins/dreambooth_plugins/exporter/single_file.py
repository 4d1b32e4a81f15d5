"""A whole model as one file in the layout of its first publication."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dreambooth.interfaces.freezing import ArtifactKind
from dreambooth_plugins.exporter.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dreambooth import Job
    from dreambooth.interfaces import Artifact, Check, Context, LoadedModel, ModelInfo


class SingleFile(Stored):
    """One .safetensors file in the original layout: AUTOMATIC1111, Forge, ComfyUI, and diffusers'
    `from_single_file`.

    Adapters are folded in. Beside it lies `config/`, the diffusers configuration and tokenizer:
    with it the file opens without a connection, whatever the sizes of the model. A learned word
    lies beside it too (`embeddings/<word>.safetensors`): programs that read this layout know the
    words of CLIP's own tokenizer alone.
    """

    kind: Literal["single_file"] = "single_file"
    accepts: ClassVar[frozenset[ArtifactKind]] = frozenset({"weights", "adapter", "embedding"})
    reads_whole_model: ClassVar[bool] = True
    layout: ClassVar[str] = "original"

    def write(
        self,
        artifact: Artifact,
        model: LoadedModel,
        dest: Path,
        ctx: Context,
        solver_config: Mapping[str, Any],
    ) -> None:
        """Write the file and its configuration into `dest`."""
        from dreambooth_plugins.exporter.single_file_tensors import write_single_file
        from dreambooth_plugins.formats.embedding import write_word

        with model.without_tokens():
            write_single_file(artifact, model, dest, ctx, solver_config, self.dtype)
        write_word(artifact, dest, self.dtype, model.info)

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Open the file with `from_single_file`; compare every weight and what it draws."""
        from dreambooth_plugins.exporter.single_file_tensors import check_single_file

        return check_single_file(artifact, model, dest, ctx, self.dtype)

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the file is opened."""
        from dreambooth_plugins.exporter.usage import single_file_usage

        return single_file_usage(job, info, files)
