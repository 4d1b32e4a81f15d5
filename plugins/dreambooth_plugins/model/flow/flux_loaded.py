"""An opened FLUX.1 model: how it reads prompts, times and guidance, and what it predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dreambooth.interfaces import Conditioning
from dreambooth_plugins.formats.lora.native_rules import FLUX, FLUX_SWAPPED
from dreambooth_plugins.model.flow.loaded import FlowFolder, packed, unpacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.interfaces import RowGeometry

TOKENS, FEW_TOKENS = 512, 256
"""Tokens T5 reads of a prompt, schnell's fewer. The padding is attended to."""
TRAINED_WITH = 1.0
"""The guidance of training: with more the network would learn to guide once more."""


class LoadedFlux(FlowFolder):
    """CLIP's pooled text, T5's states, and tokens of 2 x 2 latent cells with their places."""

    native: ClassVar = FLUX

    def swapped(self) -> tuple[str, ...]:
        """Return the last modulation."""
        return FLUX_SWAPPED

    @property
    def length(self) -> int:
        """Tokens of a prompt."""
        return FEW_TOKENS if self.info.guidance == "none" else TOKENS

    def encode_part(self, part: str, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts: CLIP gives `pooled` [dim], T5 `embeds` [tokens, dim], float32."""
        clip = part == "text_encoder"
        length = self.tokenizer_of(part).model_max_length if clip else self.length
        ids, _ = self.read_texts(part, prompts, length)
        found = self._through(part, lambda text: text(ids))
        rows = found.pooler_output if clip else found.last_hidden_state
        return [Conditioning({"pooled" if clip else "embeds": row}) for row in rows.float()]

    def condition(
        self, cond: Conditioning, rows: Sequence[RowGeometry], *, guidance: float | None = None
    ) -> Conditioning:
        """Add `guidance` [B] float32 where the network takes it: 1.0 unless a sampler gives one."""
        if self.info.guidance != "embedded":
            return cond
        value = TRAINED_WITH if guidance is None else guidance
        given = torch.full((len(rows),), value, device=self._ctx.device)
        return Conditioning({**cond.tensors, "guidance": given})

    def denoise(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict noise - x0 in float32 from z_t [B, C, h, w] at times t [B]."""
        embeds, pooled = self.inputs(cond, "embeds", "pooled")
        device, (h, w) = self._ctx.device, z_t.shape[-2:]
        velocity = self.run(
            hidden_states=packed(z_t.to(device, embeds.dtype)),
            timestep=t.to(device, torch.float32),
            guidance=cond.tensors.get("guidance"),
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=device),
            img_ids=places(h // 2, w // 2).to(device),
        )
        return unpacked(velocity.float(), (h, w))

    def answer(
        self, pipe: Any, prompts: Sequence[str], z_t: Tensor, t: Tensor, rows: Sequence[RowGeometry]
    ) -> tuple[Conditioning, Tensor]:
        """Return what diffusers reads and predicts (see `LoadedModel.answer`)."""
        with self.on_device(pipe.text_encoder, pipe.text_encoder_2):
            embeds, pooled, text_ids = pipe.encode_prompt(
                list(prompts), device=self._ctx.device, max_sequence_length=self.length
            )
        told = {"embeds": embeds, "pooled": pooled}
        if pipe.transformer.config.guidance_embeds:
            told["guidance"] = torch.full([1], 1.0, device=z_t.device).expand(len(z_t))
        (b, c, h, w), dtype = z_t.shape, pipe.transformer.dtype
        with self.on_device(pipe.transformer):
            velocity = pipe.transformer(
                hidden_states=pipe._pack_latents(z_t.to(dtype), b, c, h, w),
                timestep=t,
                guidance=told.get("guidance"),
                pooled_projections=pooled,
                encoder_hidden_states=embeds,
                txt_ids=text_ids,
                img_ids=pipe._prepare_latent_image_ids(b, h // 2, w // 2, z_t.device, dtype),
            ).sample
        scale = pipe.vae_scale_factor  # the pipeline may have no VAE, whose factor is another one
        return Conditioning(told), pipe._unpack_latents(velocity, h * scale, w * scale, scale)

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
        """Return what diffusers draws (see `LoadedModel.draw`)."""
        h, w = latents.shape[-2:]
        scale = pipe.vae_scale_factor
        two = {"negative_prompt": negative, "true_cfg_scale": guidance}
        call = two if self.info.guidance == "cfg" else {"guidance_scale": guidance}
        with self.on_device(pipe.text_encoder, pipe.text_encoder_2):
            tokens = self.drawn_by(
                pipe, solver, packed(latents), steps, prompt=prompt,
                height=h * scale, width=w * scale, max_sequence_length=self.length, **call,
            )  # fmt: skip
        return unpacked(tokens, (h, w))


def places(height: int, width: int) -> Tensor:
    """Return (0, row, column) of each token of a picture, float32 [height * width, 3]."""
    rows, columns = torch.arange(height), torch.arange(width)
    return torch.cartesian_prod(torch.zeros(1, dtype=torch.int64), rows, columns).float()
