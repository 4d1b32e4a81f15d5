"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dreambooth_plugins.formats.original import families
from dreambooth_plugins.model import parts_of
from dreambooth_plugins.model.folder_model import FolderModel

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.files.headers import Header
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo
    from dreambooth_plugins.model.folder.part import Part
    from dreambooth_plugins.model.folder.source import Source


class StableDiffusion(FolderModel):
    """Stable Diffusion 1.x or 2.x: a UNet, a CLIP text encoder and an AutoencoderKL."""

    kind: Literal["stable_diffusion"] = "stable_diffusion"
    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    parts: ClassVar[tuple[Part, ...]] = parts_of.STABLE_DIFFUSION

    def info(self, source: Source) -> ModelInfo:
        """Describe the model (see `FolderModel.info`)."""
        from dreambooth_plugins.model.stable_diffusion_info import model_info

        return model_info(source)

    def loaded(self, info: ModelInfo, source: Source, ctx: Context) -> LoadedModel:
        """Return the opened model."""
        from dreambooth_plugins.model.stable_diffusion_loaded import LoadedStableDiffusion

        return LoadedStableDiffusion(info, source, ctx)

    def check_folder(self, folder: Path) -> None:
        """Refuse folders of other families."""
        from dreambooth_plugins.model.stable_diffusion_info import check_index

        check_index(folder)

    def shipped(self, path: Path, header: Header, *, own_vae: bool) -> str:
        """Return the configuration of the file's version."""
        families.check_layout(path, header, own_vae=own_vae)
        return "" if self.config else families.shipped_config(path, header, self.prediction)
