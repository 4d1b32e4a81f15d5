"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationInfo, field_serializer, field_validator

from dreambooth.component import escape_variables, expand_variables, resolve_path
from dreambooth.errors import JobError
from dreambooth.interfaces import Model, ModelInfo
from dreambooth_plugins.formats.original import families
from dreambooth_plugins.model import builtin
from dreambooth_plugins.model.folder import hub
from dreambooth_plugins.model.folder.source import PICKLES, Source, check_file

if TYPE_CHECKING:
    from dreambooth.interfaces import Context, Vocabulary
    from dreambooth_plugins.model.stable_diffusion_loaded import LoadedStableDiffusion


class StableDiffusion(Model):
    """Stable Diffusion 1.x or 2.x: a UNet, a CLIP text encoder and an AutoencoderKL."""

    kind: Literal["stable_diffusion"] = "stable_diffusion"
    source: str = "builtin:emoji-64"
    """The model: a diffusers folder, a single .safetensors file, a hub id (`org/name`), or
    `builtin:emoji-64` or `builtin:emoji-128` (small, come with the trainer). A relative path
    starts at the job file."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    variant: str | None = None
    """Preferred weight files, e.g. `fp16`; parts without such files are taken plain."""
    allow_pickle: bool = False
    """Read pickled weights (.ckpt, .bin). A pickle can run code: only for files you trust."""
    config: str | None = None
    """For a single file: folder with its diffusers configuration, or `builtin:sd15`,
    `builtin:sd20-base`, `builtin:sd21`. Found out from the file where that is possible."""
    vae: str | None = None
    """Another VAE: a folder (of a VAE, or of a model that has one) or a single file."""

    @field_validator("source", "config", "vae", mode="after")
    @classmethod
    def _resolve(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or value.startswith(builtin.PREFIX):
            return value
        value = expand_variables(value)
        path = resolve_path(Path(value), info)
        # os.path: a name the system does not take is not there, rather than an error of Path's.
        named = info.field_name == "source" and not os.path.exists(path)
        if named and hub.is_hub_id(value):
            return value
        return str(path.absolute())

    @field_serializer("source", "config", "vae", when_used="json")
    def _escape(self, value: str | None) -> str | None:
        return value if value is None else escape_variables(value)

    def describe(self) -> ModelInfo:
        """Read what the model is from its JSON files, or from a single file's header.

        `JobError` where the model is missing, incomplete, of another family, or pickled without
        `allow_pickle`. Weights of a hub model are not downloaded here.
        """
        from dreambooth_plugins.model.folder.vocabulary import check_ids, vocabulary_of
        from dreambooth_plugins.model.stable_diffusion_info import model_info

        source = self._locate(opening=False, fetch=False)
        info = model_info(source)
        if not self.source.startswith(builtin.PREFIX):
            check_ids(vocabulary_of(source), source)
        return info

    def vocabulary(self) -> Vocabulary:
        """Read the tokenizer's vocabulary (CLIP's own for a file with a shipped configuration)."""
        if self.source == builtin.PREFIX + builtin.TINY:
            from dreambooth_plugins.model.folder.vocabulary import shipped_vocabulary
            from dreambooth_plugins.model.tiny import MERGES

            return shipped_vocabulary(MERGES)
        from dreambooth_plugins.model.folder.vocabulary import vocabulary_of

        return vocabulary_of(self._locate(opening=False, fetch=False))

    def open(self, ctx: Context) -> LoadedStableDiffusion:
        """Open the model; downloads a hub model's weights unless the device is `meta`."""
        from dreambooth_plugins.model.stable_diffusion_info import model_info
        from dreambooth_plugins.model.stable_diffusion_loaded import LoadedStableDiffusion

        source = self._locate(opening=True, fetch=ctx.device.type != "meta")
        return LoadedStableDiffusion(model_info(source), source, ctx)

    def at(self, folder: Path) -> StableDiffusion:
        """Return this model with everything taken from the diffusers folder `folder`."""
        return StableDiffusion(source=escape_variables(str(Path(folder).absolute())))

    def _locate(self, *, opening: bool, fetch: bool) -> Source:
        """Find the model's files; `opening` builds a built-in's weights, `fetch` downloads."""
        from dreambooth_plugins.model.stable_diffusion_info import check_index

        vae = self._vae_path()
        if self.source.startswith(builtin.PREFIX):
            name = self.source.removeprefix(builtin.PREFIX)
            source = Source(builtin.base_folder(name, build=opening), vae=vae)
            if vae is not None:
                source.check(weights=opening)
            return source
        path = Path(self.source)
        if path.is_file() or path.suffix.lower() in (".safetensors", *PICKLES):
            return self._single_file(path, vae)
        folder, from_hub = path, not path.is_absolute()
        if from_hub:
            model = hub.HubModel(self.source, self.revision, self.variant, self.allow_pickle)
            folder = model.folder(fetch=fetch)
        source = Source(folder, None, vae, self.variant, self.allow_pickle)
        check_index(folder)
        source.check(weights=fetch or not from_hub)
        return source

    def _vae_path(self) -> Path | None:
        if self.vae is None:
            return None
        path = Path(self.vae)
        if path.is_file():
            check_file(path, self.allow_pickle)
        elif not any((path / name).is_file() for name in ("config.json", "vae/config.json")):
            raise JobError(
                f"there is no VAE at {path}",
                "model.vae takes a folder with the VAE's config.json, a model's folder, "
                "or a .safetensors file",
            )
        return path

    def _single_file(self, path: Path, vae: Path | None) -> Source:
        if not path.is_file():
            raise JobError(f"there is no model file {path}", "check model.source")
        check_file(path, self.allow_pickle)
        from dreambooth_plugins.common.headers import read_header
        from dreambooth_plugins.model.stable_diffusion_info import check_index

        header = read_header(path)
        families.check_layout(path, header, own_vae=vae is not None)
        config = self.config or builtin.PREFIX + families.shipped_config(path, header)
        if config.startswith(builtin.PREFIX):
            folder = builtin.config_folder(config.removeprefix(builtin.PREFIX))
        else:
            folder = Path(config)
            check_index(folder)
        source = Source(folder, path, vae, None, self.allow_pickle)
        source.check(weights=True)
        return source
