"""An opened Stable Diffusion 1.x or 2.x model."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.errors import JobError
from dreambooth.files import cache_root
from dreambooth.interfaces import Conditioning, Latents, LoadedModel
from dreambooth.interfaces.model import NEW_ROWS
from dreambooth.transfer import upload
from dreambooth_plugins.model.fingerprint import part_fingerprint
from dreambooth_plugins.model.fitting import check_forward, check_weights
from dreambooth_plugins.model.loading import (
    frozen,
    load_part,
    load_tokenizer,
    skeleton,
)
from dreambooth_plugins.model.original_layout import LAYOUT, to_original
from dreambooth_plugins.model.parts import Parts
from dreambooth_plugins.model.saving import module_name, save_folder
from dreambooth_plugins.model.tokens import (
    extend_table,
    extended_tokenizer,
    first_rows,
    token_names,
    with_all_tokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module, Parameter
    from transformers import CLIPTokenizer

    from dreambooth.interfaces import Context, ModelInfo
    from dreambooth_plugins.model.source import Source


def _adaptable(module: Module) -> bool:
    return isinstance(module, torch.nn.Linear | torch.nn.Conv2d)


class LoadedStableDiffusion(LoadedModel):
    """UNet and text encoder in the run's dtype, the VAE in float32; all frozen, in eval mode."""

    parts: Parts

    def __init__(self, info: ModelInfo, source: Source, ctx: Context) -> None:
        super().__init__()
        self.info = info
        self.source = source
        self._ctx = ctx
        self._tokenizer: CLIPTokenizer | None = None
        self._own_tokenizer: CLIPTokenizer | None = None
        """The base's, where tokens were added to a copy of it."""
        self._prompts_read: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        """Prompt -> token ids and mask, by the `id` of the tokenizer: both live as long as this."""
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

    def encode_prompts(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts in one forward: a Conditioning({"embeds": [tokens, dim]}) each.

        CLIP of Stable Diffusion sees every prompt padded to the tokenizer's full length, so the
        result depends on the prompt alone. A prompt that is cut short is warned about.
        """
        encoder: Any = self.parts["text_encoder"]
        length = min(self.tokenizer.model_max_length, encoder.config.max_position_embeddings)
        ids, masks = zip(*(self._read(prompt, length) for prompt in prompts), strict=True)
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = upload(torch.stack(masks), self._ctx.device) if masked else None
        rows = upload(torch.stack(ids), self._ctx.device)
        hidden = self._through("text_encoder", lambda text: text(rows, attention_mask=mask)[0])
        return [Conditioning({"embeds": row}) for row in hidden.float()]

    def _read(self, prompt: str, length: int) -> tuple[Tensor, Tensor]:
        """Return a prompt's token ids and mask, int64 [length] on the CPU.

        Kept: an encoder that trains reads the same prompts in every step.
        """
        known = self._prompts_read.setdefault(id(self.tokenizer), {})
        if prompt not in known:
            written = with_all_tokens(self.tokenizer, prompt)
            tokens = self.tokenizer(
                written,
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            self._warn_truncated(written, length)
            known[prompt] = tokens.input_ids[0], tokens.attention_mask[0]
        return known[prompt]

    def _warn_truncated(self, prompt: str, length: int) -> None:
        count = len(self.tokenizer(prompt, verbose=False).input_ids)
        if count > length:
            self._ctx.warn(
                f'the model reads {length - 2} tokens of a prompt, "{prompt}" has {count - 2}: '
                "the rest is ignored"
            )

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

    def collate(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Stack embeddings to [B, tokens, dim]; all have the same length."""
        return Conditioning({"embeds": torch.stack([c.tensors["embeds"] for c in conditionings])})

    def denoise(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict epsilon or v in float32 from z_t [B, 4, h, w], t [B], embeds [B, tokens, dim]."""
        unet: Any = self.parts["unet"]
        embeds = cond.tensors["embeds"].to(self._ctx.device, unet.dtype)
        z_t, t = z_t.to(self._ctx.device, unet.dtype), t.to(self._ctx.device)
        prediction: Tensor = self._through("unet", lambda unet: unet(z_t, t, embeds).sample)
        return prediction.float()

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

    def adapter_keys(self, layout: str) -> Mapping[str, str]:
        """Map the qualified names of linear and convolution layers to those of a file layout.

        `diffusers`: with the `text_model.` that other versions of transformers have. `kohya`:
        `lora_unet_...` and `lora_te_text_model_...`, underscores for dots.
        """
        names = {
            part: [n for n, m in skeleton(self.source, part).named_modules() if _adaptable(m)]
            for part in ("unet", "text_encoder")
        }
        files = {f"{p}.{n}": f"{p}.{module_name(p, n)}" for p in names for n in names[p]}
        if layout == "diffusers":
            return files
        if layout != "kohya":
            raise KeyError(layout)
        prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
        return {
            here: prefixes[there.split(".")[0]] + "_" + there.split(".", 1)[1].replace(".", "_")
            for here, there in files.items()
        }

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
        save_folder(self, dest, solver_config, weights or {}, dtype)

    def convert(self, part: str, tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
        """Give a part's tensors the names of the `original` layout (see `LoadedModel.convert`)."""
        if layout != LAYOUT:
            return super().convert(part, tensors, layout)
        configs = {name: self.source.part_config(name) for name in self.parts}
        return to_original(part, tensors, configs)

    def pipeline(self) -> Any:
        """Return a StableDiffusionPipeline on the base's weights (see `LoadedModel.pipeline`)."""
        from dreambooth_plugins.model.pipeline import base_pipeline

        return base_pipeline(self)

    def frozen_copy(self) -> LoadedStableDiffusion:
        """Copy UNet and text encoder as they are now; VAE and tokenizer are shared."""
        other = LoadedStableDiffusion(self.info, self.source, self._ctx)
        other._tokenizer = self._tokenizer
        other.embeddings = dict(self.embeddings)
        own = partial(LoadedStableDiffusion._load, other)
        other.parts = Parts(
            self.info.parts, lambda name: self.parts[name] if name == "vae" else own(name)
        )
        for name in self.loaded():
            if name != "vae":
                other.parts.loaded[name] = frozen(copy.deepcopy(self.parts[name]))
        return other
