"""An opened Stable Diffusion 1.x or 2.x model: how it reads prompts, and what it predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.helpers.transfer import upload
from dreambooth.interfaces import Conditioning
from dreambooth_plugins.model.clip_unet import ClipUNet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dreambooth.interfaces import RowGeometry


NO_CHECKER = {
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
}
"""What model_index.json says of a pipeline without a safety checker."""


class LoadedStableDiffusion(ClipUNet):
    """UNet and text encoder in the run's dtype, the VAE in float32; all frozen, in eval mode."""

    def encode_prompts(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts in one forward: a Conditioning({"embeds": [tokens, dim]}) each.

        CLIP of Stable Diffusion sees every prompt padded to the tokenizer's full length, so the
        result depends on the prompt alone. A prompt that is cut short is warned about.
        """
        rows, masks = self.read_prompts("text_encoder", prompts)
        masked = getattr(self.parts["text_encoder"].config, "use_attention_mask", False)
        mask = upload(masks, self._ctx.device) if masked else None
        hidden = self._through("text_encoder", lambda text: text(rows, attention_mask=mask)[0])
        return [Conditioning({"embeds": row}) for row in hidden.float()]

    def denoise(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict epsilon or v in float32 from z_t [B, 4, h, w], t [B], embeds [B, tokens, dim]."""
        return self.predict(z_t, t, cond, {})

    def answer(
        self, pipe: Any, prompts: Sequence[str], z_t: Tensor, t: Tensor, rows: Sequence[RowGeometry]
    ) -> tuple[Conditioning, Tensor]:
        """Return what diffusers reads and predicts (see `LoadedModel.answer`)."""
        with self.on_device(pipe.text_encoder):
            embeds, _ = pipe.encode_prompt(list(prompts), self._ctx.device, 1, False)
        with self.on_device(pipe.unet):
            prediction = pipe.unet(z_t.to(pipe.unet.dtype), t, encoder_hidden_states=embeds).sample
        return Conditioning({"embeds": embeds}), prediction

    def texts_of(self, pipe: Any, prompt: str, negative: str) -> Mapping[str, Any]:
        """Return the texts of a picture, as the pipeline's call takes them."""
        with self.on_device(pipe.text_encoder):
            embeds, empty = pipe.encode_prompt(prompt, self._ctx.device, 1, True, negative)
        return {"prompt_embeds": embeds, "negative_prompt_embeds": empty}

    def index_options(self) -> Mapping[str, Any]:
        """Return that there is no safety checker."""
        return NO_CHECKER

    def pipeline_options(self) -> Mapping[str, Any]:
        """Return that none is wanted."""
        return {"requires_safety_checker": False}
