"""A model that is a diffusers folder, or a single file, a hub id, a built-in in place of one.

A family says what its parts are and reads its JSON files; where they lie is the same for all.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import ValidationInfo, field_serializer, field_validator

from dreambooth.component import escape_variables, expand_variables, resolve_path
from dreambooth.errors import JobError
from dreambooth.interfaces import Model, ModelInfo
from dreambooth_plugins.formats.original import families
from dreambooth_plugins.model import builtin
from dreambooth_plugins.model.folder import hub
from dreambooth_plugins.model.folder.part import Part
from dreambooth_plugins.model.folder.source import PICKLES, Source, check_file

if TYPE_CHECKING:
    from dreambooth.files.headers import Header
    from dreambooth.interfaces import Context, LoadedModel, Vocabulary


class FolderModel(Model):
    """A family of models that diffusers lays out as folders. No kind of its own: a base.

    A family names its `pipeline_class` and its `parts`, and implements `info` and `loaded`; one
    with a layout for single files implements `shipped` as well.
    """

    pipeline_class: ClassVar[str]
    """diffusers' class, as model_index.json names it."""
    parts: ClassVar[tuple[Part, ...]]
    """The networks it is made of."""
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
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the model predicts, for files that do not say it, or say it wrongly (many v-prediction
    models of SD 1.x and 2.x); null: what its files say."""

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

    def info(self, source: Source) -> ModelInfo:
        """Describe the model from its JSON files, which `source` reads; no torch.

        `JobError` where it is incomplete, implausible or of another family.
        """
        raise NotImplementedError  # abstract

    def loaded(self, info: ModelInfo, source: Source, ctx: Context) -> LoadedModel:
        """Return the opened model; nothing heavy is read yet."""
        raise NotImplementedError  # abstract

    def parts_of(self, folder: Path) -> tuple[Part, ...]:
        """Return the parts a diffusers folder of this family has: the default, all of them."""
        return self.parts

    def check_folder(self, folder: Path) -> None:
        """Raise `JobError` unless `folder` is a diffusers folder of this family."""
        raise NotImplementedError  # abstract

    def shipped(self, path: Path, header: Header, *, own_vae: bool) -> str:
        """Return the shipped configuration that fits a single file.

        `JobError` where the file is no whole model of this family. `own_vae`: the job brings
        another VAE, so that the file need not hold one. Asked with `config` set too, for the
        errors alone.
        """
        raise JobError(
            f"{path} is a single file, which kind {self.kind} does not read",
            "name a diffusers folder",
        )

    def describe(self) -> ModelInfo:
        """Read what the model is from its JSON files, or from a single file's header.

        `JobError` where the model is missing, incomplete, of another family, or pickled without
        `allow_pickle`. Weights of a hub model are not downloaded here.
        """
        from dreambooth_plugins.model.folder.vocabulary import check_ids, vocabulary_of

        source = self._locate(opening=False, fetch=False)
        info = self._described(source)
        found = None if self.source.startswith(builtin.PREFIX) else vocabulary_of(source)
        if found is not None:
            check_ids(found, source)
        return info

    def vocabulary(self) -> Vocabulary | None:
        """Read the tokenizer's vocabulary (CLIP's own for a file with a shipped configuration);
        None for the tokenizers of language models."""
        if self.source.removeprefix(builtin.PREFIX) in builtin.TINY:
            from dreambooth_plugins.model.folder.vocabulary import shipped_vocabulary
            from dreambooth_plugins.model.tiny import MERGES

            return shipped_vocabulary(MERGES)
        from dreambooth_plugins.model.folder.vocabulary import vocabulary_of

        return vocabulary_of(self._locate(opening=False, fetch=False))

    def open(self, ctx: Context) -> LoadedModel:
        """Open the model; downloads a hub model's weights unless the device is `meta`."""
        source = self._locate(opening=True, fetch=ctx.device.type != "meta")
        if not self.source.startswith(builtin.PREFIX):
            self._tell(source, ctx)
        return self.loaded(self._described(source), source, ctx)

    def _tell(self, source: Source, ctx: Context) -> None:
        """Warn of weights that were rounded for drawing alone."""
        try:
            rounded = source.rounded()
        except JobError:
            return  # still to be downloaded; who reads them says what is wrong
        for file in rounded:
            ctx.warn(
                f"{file} holds weights rounded to 8 bits (fp8): training begins with what is left "
                "of them; take the fp16 file where there is one"
            )

    def at(self, folder: Path) -> Self:
        """Return this model with everything taken from the diffusers folder `folder`."""
        named = {"kind": self.kind, "source": escape_variables(str(Path(folder).absolute()))}
        return type(self).model_validate(named)

    def _described(self, source: Source) -> ModelInfo:
        embedded = self.source.startswith(builtin.PREFIX)
        return replace(self.info(source), embedded=embedded)

    def _locate(self, *, opening: bool, fetch: bool) -> Source:
        """Find the model's files; `opening` builds a built-in's weights, `fetch` downloads."""
        vae = self._vae_path()
        if self.source.startswith(builtin.PREFIX):
            name = self.source.removeprefix(builtin.PREFIX)
            folder = builtin.base_folder(name, build=opening)
            source = Source(self.parts, folder, vae=vae, prediction=self.prediction)
            self.check_folder(source.config)
            if vae is not None:
                source.check(weights=opening)
            return source
        path = Path(self.source)
        if path.is_file() or path.suffix.lower() in (".safetensors", *PICKLES):
            return self._single_file(path, vae)
        folder, from_hub = path, not path.is_absolute()
        if from_hub:
            model = hub.HubModel(
                self.parts, self.source, self.revision, self.variant, self.allow_pickle
            )
            folder = model.folder(fetch=fetch)
        self.check_folder(folder)
        parts = self.parts_of(folder)
        source = Source(parts, folder, None, vae, self.variant, self.allow_pickle, self.prediction)
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

        header = read_header(path)
        shipped = self.shipped(path, header, own_vae=vae is not None)
        said = None if self.config else families.said_prediction(header)
        config = self.config or builtin.PREFIX + shipped
        if config.startswith(builtin.PREFIX):
            folder = builtin.config_folder(config.removeprefix(builtin.PREFIX))
        else:
            folder = Path(config)
            self.check_folder(folder)
        source = Source(
            self.parts, folder, path, vae, None, self.allow_pickle, self.prediction or said
        )
        source.check(weights=True)
        return source
