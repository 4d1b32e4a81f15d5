"""What components of flow-matching families share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from dreambooth.errors import JobError
from dreambooth_plugins.model.clip_unet_info import class_of, read_index
from dreambooth_plugins.model.flow.info import check_index
from dreambooth_plugins.model.flow.vocabulary import read_vocabulary
from dreambooth_plugins.model.folder_model import FolderModel

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.interfaces import Context, LoadedModel, ModelInfo, Vocabulary
    from dreambooth_plugins.model.folder.part import Part

SAME_STATES = {"Qwen3Model", "Qwen3ForCausalLM"}
"""Classes of one language model, whose hidden states are the same."""


class FlowModel(FolderModel):
    """A diffusers folder of a model that predicts a flow. No kind of its own."""

    source: str
    """The model: a diffusers folder or a hub id (`org/name`). A relative path starts at the job
    file."""
    distilled: Literal["warn", "refuse"] = "warn"
    """What is done about a model that was distilled to few steps, as far as its files tell, and
    loses them when it is trained plainly: a warning that names the base, or an error."""

    def describe(self) -> ModelInfo:
        """Read what the model is from its JSON files (see `FolderModel.describe`)."""
        info = super().describe()
        if info.distilled and self.distilled == "refuse":
            raise JobError(info.distilled_warning, f"set model.source to {info.distilled}")
        return info

    def open(self, ctx: Context) -> LoadedModel:
        """Open the model; a distilled one is warned about."""
        model = super().open(ctx)
        if model.info.distilled:
            ctx.warn(model.info.distilled_warning)
        return model

    def vocabulary(self) -> Vocabulary | None:
        """Read the first text encoder's vocabulary: CLIP's kind, or a language model's."""
        source = self._locate(opening=False, fetch=False)
        first = source.in_role("text_encoders")[0]
        if first.frozen:
            return read_vocabulary(source.config / str(first.tokenizer))
        return super().vocabulary()

    def parts_of(self, folder: Path) -> tuple[Part, ...]:
        """Return the parts a folder has, a language model by the class it was saved as."""
        index = read_index(folder, self.parts)
        found = [(part, class_of(index, part.name)) for part in self.parts]
        return tuple(
            replace(part, cls=cls) if {part.cls, cls} <= SAME_STATES else part
            for part, cls in found
            if cls or not part.optional
        )

    def check_folder(self, folder: Path) -> None:
        """Refuse folders of other families, and of pipelines that do something else."""
        check_index(folder, self.parts_of(folder), self.pipeline_class, self.kind)
