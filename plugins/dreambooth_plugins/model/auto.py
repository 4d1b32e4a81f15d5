"""The family is found out from the files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreambooth.component import escape_variables
from dreambooth.errors import JobError
from dreambooth_plugins.formats.original import families
from dreambooth_plugins.model import builtin
from dreambooth_plugins.model.flow.flux import Flux
from dreambooth_plugins.model.flow.flux2_klein import Flux2Klein
from dreambooth_plugins.model.flow.qwen_image import QwenImage
from dreambooth_plugins.model.flow.sd3 import StableDiffusion3
from dreambooth_plugins.model.flow.z_image import ZImage
from dreambooth_plugins.model.folder import hub
from dreambooth_plugins.model.folder.source import read_json
from dreambooth_plugins.model.folder_model import FolderModel
from dreambooth_plugins.model.sdxl import SDXL
from dreambooth_plugins.model.stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    from collections.abc import Callable

    from dreambooth.interfaces import Context, LoadedModel, ModelInfo, Vocabulary

FAMILIES: tuple[type[FolderModel], ...] = (
    StableDiffusion, SDXL, Flux, StableDiffusion3, ZImage, Flux2Klein, QwenImage,
)  # fmt: skip


class Auto(FolderModel):
    """A model whose family its files tell: Stable Diffusion 1.x to 3.5, FLUX.1, FLUX.2 klein,
    Z-Image, Qwen-Image.

    A diffusers folder says it in model_index.json, a single file by the names of its tensors. The
    run's own job names the family it came to.
    """

    kind: Literal["auto"] = "auto"

    def family(self) -> FolderModel:
        """Return the same model as a component of its own family.

        `JobError` where there is no model, or of no family that is known here.
        """
        options: dict[str, Any] = {
            name: getattr(self, name) for name in type(self).model_fields if name != "kind"
        }
        for name in ("source", "config", "vae"):  # resolved, and taken for text to expand again
            if options[name] is not None:
                options[name] = escape_variables(options[name])
        return self._cls().model_validate(options)

    def _cls(self) -> type[FolderModel]:
        if self.source.startswith(builtin.PREFIX):
            name = self.source.removeprefix(builtin.PREFIX)
            return self._of_folder(builtin.base_folder(name, build=False))
        path = Path(self.source)
        if path.is_file():
            if path.suffix.lower() != ".safetensors":
                return StableDiffusion  # a pickle's names are read by nobody; it says what to do
            from dreambooth_plugins.common.headers import read_header

            found = families.family_of(read_header(path))
            # What is no whole model of any family is told apart by the oldest one.
            return next(
                (cls for cls in FAMILIES if cls.model_fields["kind"].default == found),
                StableDiffusion,
            )
        if path.is_absolute():
            return self._of_folder(path)
        model = hub.HubModel((), self.source, self.revision, self.variant, self.allow_pickle)
        return self._of_folder(model.folder(fetch=False))

    def _of_folder(self, folder: Path) -> type[FolderModel]:
        file = folder / "model_index.json"
        if not file.is_file():
            return StableDiffusion  # says that there is none
        index = read_json(file)
        name = str(index.get("_class_name", ""))
        for cls in FAMILIES:
            if name == cls.pipeline_class:
                return cls
        # Pipelines of the same parts that do something else with them, told by their families.
        if "XL" in name:
            return SDXL
        if name.startswith("StableDiffusion"):
            return StableDiffusion
        known = ", ".join(cls.pipeline_class for cls in FAMILIES)
        raise JobError(
            f"{folder} holds a {name or 'model without a pipeline'}, of no family known here",
            f"known are {known}; a plugin may bring others, named in model.kind",
        )

    def settled(self, describe: Callable[[], ModelInfo]) -> FolderModel:  # type: ignore[override]
        """Return the model as one of its family."""
        return self.family()

    def describe(self) -> ModelInfo:
        """Read what the model is (see its family)."""
        return self.family().describe()

    def vocabulary(self) -> Vocabulary | None:
        """Read the vocabulary of its first text encoder."""
        return self.family().vocabulary()

    def open(self, ctx: Context) -> LoadedModel:
        """Open the model."""
        return self.family().open(ctx)

    def at(self, folder: Path) -> FolderModel:  # type: ignore[override]
        """Return a model of its family at `folder`."""
        return self.family().at(folder)
