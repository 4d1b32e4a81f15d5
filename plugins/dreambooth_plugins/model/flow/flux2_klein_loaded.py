"""An opened FLUX.2 klein model: texts of three layers, and places by text and picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dreambooth.helpers.transfer import upload
from dreambooth.interfaces import Conditioning
from dreambooth_plugins.common.autoencoders import BatchNormPatches, seen
from dreambooth_plugins.formats.lora.native_rules import FLUX2, FLUX2_SWAPPED
from dreambooth_plugins.model.flow.language import LanguageModel
from dreambooth_plugins.model.flow.parts import KLEIN_LAYERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dreambooth.interfaces import RowGeometry

TOKENS = 512
"""Tokens of a prompt, the chat's own included; the padding is attended to."""


class LoadedFlux2Klein(LanguageModel):
    """States of three layers side by side, and tokens of one latent cell with their places."""

    latents: ClassVar = BatchNormPatches()
    native: ClassVar = FLUX2

    def swapped(self) -> tuple[str, ...]:
        """Return the last modulation."""
        return FLUX2_SWAPPED

    def encode_part(self, part: str, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts: `embeds` [512, 3 dim] each, float32."""
        read = [self.read_chat(prompt, TOKENS, thinking=False) for prompt in prompts]
        ids, masks = (torch.stack(rows) for rows in zip(*read, strict=True))
        device = self._ctx.device
        states = self.states(upload(ids, device), upload(masks, device))
        side_by_side = torch.cat([states[layer] for layer in KLEIN_LAYERS], dim=-1)
        return [Conditioning({"embeds": row}) for row in side_by_side.float()]

    def denoise(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict noise - x0 in float32 from z_t [B, C, h, w] at times t [B]."""
        [embeds] = self.inputs(cond, "embeds")
        device, (b, c, h, w) = self._ctx.device, z_t.shape
        velocity = self.run(
            hidden_states=z_t.to(device, embeds.dtype).flatten(2).transpose(1, 2),
            timestep=t.to(device, torch.float32),
            encoder_hidden_states=embeds,
            txt_ids=places(1, 1, embeds.shape[1]).to(device).expand(b, -1, -1),
            img_ids=places(h, w, 1).to(device).expand(b, -1, -1),
        )
        return velocity.float().transpose(1, 2).reshape(b, c, h, w)

    def answer(
        self, pipe: Any, prompts: Sequence[str], z_t: Tensor, t: Tensor, rows: Sequence[RowGeometry]
    ) -> tuple[Conditioning, Tensor]:
        """Return what diffusers reads and predicts (see `LoadedModel.answer`)."""
        with self.on_device(pipe.text_encoder):
            embeds, text_ids = pipe.encode_prompt(list(prompts), device=self._ctx.device)
        with self.on_device(pipe.transformer):
            ids = pipe._prepare_latent_ids(z_t).to(z_t.device)
            velocity = pipe.transformer(
                hidden_states=pipe._pack_latents(z_t.to(pipe.transformer.dtype)),
                timestep=t,
                guidance=None,
                encoder_hidden_states=embeds,
                txt_ids=text_ids,
                img_ids=ids,
            ).sample
        found = pipe._unpack_latents_with_ids(velocity, ids, *z_t.shape[-2:])
        return Conditioning({"embeds": embeds}), found

    def draw(
        self,
        pipe: Any,
        prompt: str,
        negative: str,
        latents: Tensor,
        solver: Any,
        steps: int,
        guidance: float,
    ) -> Tensor:
        """Return what diffusers draws (see `LoadedModel.draw`).

        The pipeline gives latents back as its autoencoder has them, which it must be lent for that.
        """
        height, width = (2 * side * pipe.vae_scale_factor for side in latents.shape[-2:])
        vae: Any = self.parts["vae"]
        pipe.vae, held = vae, pipe.vae
        try:
            with self.on_device(pipe.text_encoder):
                empty, _ = pipe.encode_prompt(negative, device=self._ctx.device)
                drawn = self.drawn_by(
                    pipe, solver, latents, steps, prompt=prompt, negative_prompt_embeds=empty,
                    height=height, width=width, guidance_scale=guidance,
                )  # fmt: skip
        finally:
            pipe.vae = held
        mean, std = seen(vae)
        return (torch.nn.functional.pixel_unshuffle(drawn, 2) - mean) / std

    def pipeline_options(self) -> Mapping[str, Any]:
        """Return whether the pipeline may guide."""
        return {"is_distilled": self.info.guidance == "none"}

    def index_options(self) -> Mapping[str, Any]:
        """Return whether the model is distilled."""
        return self.pipeline_options()


def places(height: int, width: int, length: int) -> Tensor:
    """Return (0, row, column, number in the text) of each token, int64 [tokens, 4]."""
    axes = (torch.arange(n) for n in (1, height, width, length))
    return torch.cartesian_prod(*axes)
