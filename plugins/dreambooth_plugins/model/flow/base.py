"""What components of flow-matching families share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth.errors import JobError
from dreambooth_plugins.model.flow.info import check_index
from dreambooth_plugins.model.folder_model import FolderModel

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.interfaces import Context, LoadedModel, ModelInfo


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

    def check_folder(self, folder: Path) -> None:
        """Refuse folders of other families, and of pipelines that do something else."""
        check_index(folder, self.parts, self.pipeline_class, self.kind)
