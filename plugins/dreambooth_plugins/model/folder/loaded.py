"""A diffusers folder that is open: its parts, come and gone; words; saving."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.errors import JobError
from dreambooth.files import cache_root
from dreambooth.interfaces import Latents, LoadedModel
from dreambooth.interfaces.model import NEW_ROWS
from dreambooth_plugins.formats.embedding import token_names
from dreambooth_plugins.model.folder.fingerprint import part_fingerprint
from dreambooth_plugins.model.folder.fitting import check_forward, check_weights
from dreambooth_plugins.model.folder.loading import (
    frozen,
    load_part,
    skeleton,
)
from dreambooth_plugins.model.folder.parts import Parts
from dreambooth_plugins.model.folder.saving import save_folder
from dreambooth_plugins.model.folder.tokenizer import load_tokenizer
from dreambooth_plugins.model.folder.tokens import (
    extend_table,
    extended_tokenizer,
    first_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module, Parameter
    from transformers import CLIPTokenizer

    from dreambooth.interfaces import Context, ModelInfo
    from dreambooth_plugins.model.folder.source import Source


class LoadedFolder(LoadedModel):
    """Parts in the run's dtype, the VAE in float32; all frozen, in eval mode.

    Families add how prompts are encoded and how the denoiser is called.
    """

    parts: Parts

    def __init__(self, info: ModelInfo, source: Source, ctx: Context) -> None:
        super().__init__()
        self.info = info
        self.source = source
        self._ctx = ctx
        self._tokenizer: CLIPTokenizer | None = None
        self._own_tokenizer: CLIPTokenizer | None = None
        """The base's, where tokens were added to a copy of it."""
        self.parts = Parts(info.parts, self._load)

    def _load(self, part: str) -> Module:
        if self._ctx.device.type == "meta":
            module = skeleton(self.source, part)
            check_weights(self.source, part, module)
            return module
        dtype = torch.float32 if part == "vae" else self._ctx.dtype
        on_cpu = self._ctx.device.type == "cpu"
        return load_part(self.source, part, dtype, mapped=not on_cpu).to(self._ctx.device)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer; tokens that are added to it are saved with the model."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.source)
        return self._tokenizer

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
            posterior = self._through("vae", lambda vae: vae.encode(pixels).latent_dist)
        shift, scale = self._shift_and_scale()
        return Latents((posterior.mean - shift) * scale, posterior.std * scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to pixels [B, 3, H, W] in [-1, 1], both float32."""
        shift, scale = self._shift_and_scale()
        with self._float32():
            unscaled = latents.to(self._ctx.device, torch.float32) / scale + shift
            pixels: Tensor = self._through("vae", lambda vae: vae.decode(unscaled).sample)
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

    def _shift_and_scale(self) -> tuple[float, float]:
        config: Any = self.parts["vae"].config
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor

    def add_tokens(self, name: str, count: int, words: str) -> Mapping[str, Parameter]:
        """Add rows to the text encoder and tokens to the tokenizer (see `LoadedModel`)."""
        encoder: Any = self.parts["text_encoder"]
        extended = extended_tokenizer(self.tokenizer, name, count)
        table = encoder.get_input_embeddings().weight.detach()
        rows = first_rows(table, self.tokenizer, words, count)
        extend_table(encoder, extended, rows)
        self._own_tokenizer, self._tokenizer = self._tokenizer, extended
        self.words[name] = tuple(token_names(name, count))
        return {n: p for n, p in self.named_parameters("text_encoder") if n.endswith(NEW_ROWS)}

    @contextmanager
    def without_tokens(self) -> Iterator[None]:
        """Put the base's own tokenizer in place."""
        extended = self._tokenizer
        self._tokenizer = self._own_tokenizer or extended
        try:
            yield
        finally:
            self._tokenizer = extended

    def enable_gradient_checkpointing(self, parts: Sequence[str]) -> None:
        """Recompute activations in the backward pass of the named parts, in either mode.

        transformers' layers checkpoint in training mode alone. Only the layer itself is put into
        it, not what lies inside, so dropout stays as the part's mode says.
        """
        for name in parts:
            module: Any = self.parts[name]
            if name != "text_encoder":
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
        save_folder(
            self.source, self.parts, self.tokenizer, dest, solver_config, weights or {}, dtype
        )

    def frozen_copy(self) -> LoadedFolder:
        """Copy all parts but the VAE as they are now; VAE and tokenizer are shared."""
        other = type(self)(self.info, self.source, self._ctx)
        other._tokenizer = self._tokenizer
        other.embeddings = dict(self.embeddings)
        other.parts = Parts(
            self.info.parts, lambda name: self.parts[name] if name == "vae" else other._load(name)
        )
        for name in self.loaded():
            if name != "vae":
                other.parts.loaded[name] = frozen(copy.deepcopy(self.parts[name]))
        return other
