"""A diffusers folder that is open: its parts, come and gone; words; saving."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dreambooth.errors import JobError
from dreambooth.files import cache_root
from dreambooth.interfaces import LoadedModel
from dreambooth.interfaces.model import NEW_ROWS
from dreambooth_plugins.common.autoencoders import KL, Codec
from dreambooth_plugins.formats.embedding import token_names
from dreambooth_plugins.model.folder.fingerprint import part_fingerprint
from dreambooth_plugins.model.folder.fitting import check_forward, check_weights
from dreambooth_plugins.model.folder.loading import (
    Parts,
    frozen,
    load_part,
    skeleton,
)
from dreambooth_plugins.model.folder.pipeline import (
    base_pipeline,
    opened_pipeline,
    pipeline_class,
)
from dreambooth_plugins.model.folder.saving import save_folder
from dreambooth_plugins.model.folder.tokenizer import load_tokenizer
from dreambooth_plugins.model.folder.tokens import (
    extend_table,
    extended_tokenizer,
    first_rows,
    with_all_tokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module, Parameter
    from transformers import CLIPTokenizer

    from dreambooth.interfaces import Context, Latents, ModelInfo
    from dreambooth_plugins.model.folder.source import Source


class LoadedFolder(LoadedModel):
    """Parts in the run's dtype, the VAE in float32; all frozen, in eval mode.

    Families add how prompts are encoded and how the denoiser is called.
    """

    parts: Parts
    latents: ClassVar[Codec] = KL()

    def __init__(self, info: ModelInfo, source: Source, ctx: Context) -> None:
        super().__init__()
        self.info = info
        self.source = source
        self._ctx = ctx
        self._tokenizers: dict[str, CLIPTokenizer] = {}
        self._own_tokenizers: dict[str, CLIPTokenizer] = {}
        """The base's, where tokens were added to copies of them; both go by the part's name."""
        self._prompts_read: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        """Prompt -> token ids and mask, by the `id` of the tokenizer: both live as long as this."""
        self._vae = next(iter(info.roles.get("vae", ())), "")
        self.parts = Parts(info.parts, self._load)

    def _load(self, part: str) -> Module:
        if self._ctx.device.type == "meta":
            module = skeleton(self.source, part)
            check_weights(self.source, part, module)
            return module
        dtype = torch.float32 if part == self._vae else self._ctx.dtype
        on_cpu = self._ctx.device.type == "cpu"
        return load_part(self.source, part, dtype, mapped=not on_cpu).to(self._ctx.device)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first text encoder's; tokens that are added to it are saved with the model."""
        return self.tokenizer_of(self.info.part_names("text_encoders")[0])

    def tokenizer_of(self, part: str) -> CLIPTokenizer:
        """Return a text encoder's tokenizer."""
        if part not in self._tokenizers:
            self._tokenizers[part] = load_tokenizer(self.source, part)
        return self._tokenizers[part]

    def read_prompt(self, part: str, prompt: str, length: int) -> tuple[Tensor, Tensor]:
        """Return a prompt's token ids and mask, int64 [length] on the CPU.

        Padded to `length`; a prompt that is cut short is warned about. Kept: an encoder that
        trains reads the same prompts in every step.
        """
        tokenizer = self.tokenizer_of(part)
        known = self._prompts_read.setdefault(id(tokenizer), {})
        if prompt not in known:
            written = with_all_tokens(tokenizer, prompt)
            tokens = tokenizer(
                written,
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            count = len(tokenizer(written, verbose=False).input_ids)
            if count > length:
                own = tokenizer.num_special_tokens_to_add()
                self._ctx.warn(
                    f'the model reads {length - own} tokens of a prompt, "{written}" has '
                    f"{count - own}: the rest is ignored"
                )
            known[prompt] = tokens.input_ids[0], tokens.attention_mask[0]
        return known[prompt]

    def loaded(self) -> tuple[str, ...]:
        """Return the names of the parts that are in memory now."""
        return tuple(name for name in self.parts if name in self.parts.loaded)

    def release(self, part: str) -> None:
        """Drop a part from memory; a later use reads the source's weights again."""
        if self.parts.loaded.pop(part, None) is not None:
            gc.collect()
            if self._ctx.device.type == "cuda":
                torch.cuda.empty_cache()

    def fingerprint(self, part: str) -> str:
        """Hash a part's configuration, weight files and, for the text encoder, tokenizer."""
        memo = cache_root() / "fingerprints.json"
        try:
            return part_fingerprint(self.source, part, memo, self._ctx.progress)
        except JobError:
            if self._ctx.device.type != "meta":
                raise
            # The plan of a hub model that is not downloaded yet: nothing can be cached for it.
            config = json.dumps(self.source.part_config(part), sort_keys=True)
            return hashlib.sha256(f"no weights\n{part}\n{config}".encode()).hexdigest()

    def encode_images(self, pixels_BCHW: Tensor) -> Latents:
        """Encode float32 pixels [B, 3, H, W] in [-1, 1] to a Gaussian over scaled latents."""
        pixels = pixels_BCHW.to(self._ctx.device, torch.float32)
        with self._float32():
            found: Latents = self._through(self._vae, lambda v: self.latents.encode(v, pixels))
        return found

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to pixels [B, 3, H, W] in [-1, 1], both float32."""
        latents = latents.to(self._ctx.device, torch.float32)
        with self._float32():
            pixels: Tensor = self._through(self._vae, lambda v: self.latents.decode(v, latents))
        return pixels.clamp(-1.0, 1.0)

    def _through(self, part: str, call: Callable[[Any], Any]) -> Any:
        """Send something through a part; on `meta` tell a configuration that does not allow it."""
        module: Any = self.parts[part]
        try:
            return call(module)
        except Exception:
            if self._ctx.device.type == "meta":
                check_forward(self.source, part, module.dtype, call)
            raise

    def _float32(self) -> AbstractContextManager[object]:
        # The VAE overflows in float16, and latents are kept: they should not depend on precision.
        kind = self._ctx.device.type
        return torch.autocast(kind, enabled=False) if kind != "meta" else nullcontext()

    def add_tokens(self, name: str, count: int, words: str) -> Mapping[str, Parameter]:
        """Add rows to each text encoder and tokens to its tokenizer (see `LoadedModel`)."""
        if not self.info.learns_words:
            return super().add_tokens(name, count, words)
        for part in self.info.learns_words:
            encoder: Any = self.parts[part]
            tokenizer = self.tokenizer_of(part)
            extended = extended_tokenizer(tokenizer, name, count)
            table = encoder.get_input_embeddings().weight.detach()
            rows = first_rows(table, tokenizer, words, count)
            extend_table(encoder, extended, rows)
            self._own_tokenizers[part], self._tokenizers[part] = tokenizer, extended
        self.words[name] = tuple(token_names(name, count))
        rows_of = self.named_parameters(*self.info.learns_words)
        return {n: p for n, p in rows_of if n.endswith(NEW_ROWS)}

    @contextmanager
    def without_tokens(self) -> Iterator[None]:
        """Put the base's own tokenizers in place; what is saved then has no new rows either."""
        extended = self._tokenizers
        self._tokenizers = {**extended, **self._own_tokenizers}
        try:
            yield
        finally:
            self._tokenizers = extended

    def enable_gradient_checkpointing(self, parts: Sequence[str]) -> None:
        """Recompute activations in the backward pass of the named parts, in either mode.

        transformers' layers checkpoint in training mode alone. Only the layer itself is put into
        it, not what lies inside, so dropout stays as the part's mode says.
        """
        for name in parts:
            module: Any = self.parts[name]
            if self.source.part(name).library == "diffusers":
                module.enable_gradient_checkpointing()
                continue
            enable = getattr(module, "activation_checkpointing_enable", None)
            (enable or module.gradient_checkpointing_enable)()
            # Of use to re-entrant checkpointing alone; it would make frozen embeddings train.
            module.disable_input_require_grads()
            for layer in module.modules():
                if getattr(layer, "gradient_checkpointing", False):
                    layer.training = True

    def stored_weights(self, part: str) -> Mapping[str, Tensor]:
        """Read a part again, in float32 (see `LoadedModel.stored_weights`)."""
        module = load_part(self.source, part, torch.float32, mapped=True)
        return {f"{part}.{name}": tensor for name, tensor in module.named_parameters()}

    def save(
        self,
        dest: Path,
        solver_config: Mapping[str, Any],
        weights: Mapping[str, Tensor] | None = None,
        dtype: str = "fp32",
    ) -> None:
        """Write a diffusers folder (see `LoadedModel.save`), one part in memory at a time.

        Parts that are not in memory are copied from the source, or read, written and dropped.
        """
        tokenizers = {
            part.tokenizer: self.tokenizer_of(part.name)
            for part in self.source.parts
            if part.tokenizer and not part.frozen
        }
        index = {"_class_name": self.info.pipeline, **self.index_options()}
        save_folder(
            self.source, self.parts, tokenizers, dest, solver_config, weights or {}, dtype, index
        )

    def index_options(self) -> Mapping[str, Any]:
        """Return what model_index.json says besides parts, tokenizers and scheduler."""
        return {}

    def pipeline_options(self) -> Mapping[str, Any]:
        """Return what the pipeline's class is made with besides these."""
        return {}

    def pipeline(self, folder: Path | None = None, file: Path | None = None) -> Any:
        """Return diffusers' own pipeline (see `LoadedModel.pipeline`)."""
        cls = pipeline_class(self.info.pipeline)
        if folder is not None:
            return opened_pipeline(
                cls, self.source.parts, self.parts, folder, file, self.info.absent
            )
        texts = self.info.part_names("text_encoders")
        with self.without_tokens():
            tokenizers = {
                str(self.source.part(part).tokenizer): self.tokenizer_of(part) for part in texts
            }
        networks = {part: self.parts[part] for part in self.info.part_names("denoiser")}
        encoders = {part: self.parts[part] for part in texts}
        options = {**self.pipeline_options(), self._vae: None}
        words = self.info.learns_words
        return base_pipeline(
            cls, networks, encoders, tokenizers, self.info.schedule, options, words
        )

    @contextmanager
    def on_device(self, *modules: Any) -> Iterator[None]:
        """Bring modules of a pipeline to the run's device for the block, and back after it."""
        homes = [module.device for module in modules]
        for module in modules:
            module.to(self._ctx.device)
        try:
            yield
        finally:
            for module, home in zip(modules, homes, strict=True):
                module.to(home)

    def frozen_copy(self) -> LoadedFolder:
        """Copy the parts that may train as they are now; the others and tokenizers are shared."""
        other = type(self)(self.info, self.source, self._ctx)
        other._tokenizers = dict(self._tokenizers)
        other.embeddings = dict(self.embeddings)
        shared = {self._vae, *self.info.frozen}
        other.parts = Parts(
            self.info.parts,
            lambda name: self.parts[name] if name in shared else other._load(name),
        )
        for name in self.loaded():
            if name not in shared:
                other.parts.loaded[name] = frozen(copy.deepcopy(self.parts[name]))
        return other
