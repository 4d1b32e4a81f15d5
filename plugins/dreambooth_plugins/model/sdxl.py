"""SDXL."""

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


class SDXL(FolderModel):
    """SDXL and what is made from it (Pony, Illustrious, NoobAI): a UNet and two CLIP text encoders.

    The refiner and inpainting models are no bases for training and are refused.
    """

    kind: Literal["sdxl"] = "sdxl"
    pipeline_class: ClassVar[str] = "StableDiffusionXLPipeline"
    parts: ClassVar[tuple[Part, ...]] = parts_of.SDXL
    source: str
    """The model: a diffusers folder, a single .safetensors file, a hub id (`org/name`), or
    `builtin:tiny-sdxl` (random weights, for dry runs). A relative path starts at the job file."""
    config: str | None = None
    """For a single file: folder with its diffusers configuration, or `builtin:sdxl` (epsilon),
    `builtin:sdxl-v` (v-prediction, zero terminal SNR). Found out from the file where that is
    possible."""

    def info(self, source: Source) -> ModelInfo:
        """Describe the model (see `FolderModel.info`)."""
        from dreambooth_plugins.model.sdxl_info import model_info

        return model_info(source)

    def loaded(self, info: ModelInfo, source: Source, ctx: Context) -> LoadedModel:
        """Return the opened model."""
        from dreambooth_plugins.model.sdxl_loaded import LoadedSDXL

        return LoadedSDXL(info, source, ctx)

    def check_folder(self, folder: Path) -> None:
        """Refuse folders of other families, the refiner, and inpainting models."""
        from dreambooth_plugins.model.sdxl_info import check_index

        check_index(folder)

    def shipped(self, path: Path, header: Header, *, own_vae: bool) -> str:
        """Return the configuration for what the file says it predicts."""
        families.check_sdxl_layout(path, header, own_vae=own_vae)
        return families.sdxl_config(header, self.prediction)
