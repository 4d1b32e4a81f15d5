"""An opened Stable Diffusion 1.x or 2.x model: how it reads prompts, and what it predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dreambooth.helpers.transfer import upload
from dreambooth.interfaces import Conditioning
from dreambooth_plugins.formats.lora import kohya
from dreambooth_plugins.formats.original.names import LAYOUT, to_original
from dreambooth_plugins.model.folder.loaded import LoadedFolder
from dreambooth_plugins.model.folder.loading import skeleton
from dreambooth_plugins.model.folder.saving import module_name
from dreambooth_plugins.model.folder.tokens import with_all_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from torch.nn import Module

    from dreambooth.interfaces import Context, ModelInfo
    from dreambooth_plugins.model.folder.source import Source


def _adaptable(module: Module) -> bool:
    return isinstance(module, torch.nn.Linear | torch.nn.Conv2d)


class LoadedStableDiffusion(LoadedFolder):
    """UNet and text encoder in the run's dtype, the VAE in float32; all frozen, in eval mode."""

    def __init__(self, info: ModelInfo, source: Source, ctx: Context) -> None:
        super().__init__(info, source, ctx)
        self._prompts_read: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        """Prompt -> token ids and mask, by the `id` of the tokenizer: both live as long as this."""

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
        return kohya.module_names(files)

    def convert(self, part: str, tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
        """Give a part's tensors the names of the `original` layout (see `LoadedModel.convert`)."""
        if layout != LAYOUT:
            return super().convert(part, tensors, layout)
        configs = {name: self.source.part_config(name) for name in self.parts}
        return to_original(part, tensors, configs)

    def pipeline(self) -> Any:
        """Return a StableDiffusionPipeline on the base's weights (see `LoadedModel.pipeline`)."""
        from dreambooth_plugins.model.folder.pipeline import base_pipeline

        with self.without_tokens():
            tokenizer = self.tokenizer
        return base_pipeline(
            self.parts["unet"], self.parts["text_encoder"], tokenizer, self.info.schedule
        )
