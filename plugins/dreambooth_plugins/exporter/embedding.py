"""A learned word as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dreambooth.interfaces.freezing import ArtifactKind
from dreambooth_plugins.common.dtypes import Dtype
from dreambooth_plugins.exporter.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dreambooth import Job
    from dreambooth.interfaces import Artifact, Check, Context, LoadedModel, ModelInfo


class Embedding(Stored):
    """The learned word (textual inversion), in two layouts.

    `learned_embeds.safetensors` is diffusers' (`load_textual_inversion`); `embeddings/<word>` is
    what AUTOMATIC1111, Forge and ComfyUI read, where the file's name is the word.
    """

    kind: Literal["embedding"] = "embedding"
    accepts: ClassVar[frozenset[ArtifactKind]] = frozenset({"embedding"})
    dtype: Dtype = "fp32"
    """Precision of the stored rows."""

    def write(
        self,
        artifact: Artifact,
        model: LoadedModel,
        dest: Path,
        ctx: Context,
        solver_config: Mapping[str, Any],
    ) -> None:
        """Write both layouts into `dest`."""
        from dreambooth_plugins.formats.embedding import write_word

        write_word(artifact, dest, self.dtype, model.info)

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Load the files into a plain pipeline with diffusers; compare rows and what it draws."""
        from dreambooth_plugins.exporter.embedding_check import check_word

        return check_word(artifact, model, dest, ctx, self.dtype)

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the files are opened."""
        from dreambooth_plugins.exporter.usage import embedding_usage

        return embedding_usage(job, info, files)
