"""An opened Qwen-Image model: masked texts of unequal length, latents of single frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from dreambooth.helpers.transfer import upload
from dreambooth.interfaces import Conditioning
from dreambooth_plugins.common.autoencoders import PerChannel
from dreambooth_plugins.model.flow.language import TEXT, LanguageModel
from dreambooth_plugins.model.flow.loaded import packed, unpacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.interfaces import RowGeometry

TOKENS = 1024
"""Tokens of a prompt at most, besides what comes before it."""
BEFORE = 34
"""Tokens of the system's turn, which tells the model what to look for; their states are dropped."""
CHAT = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What the model was trained with."""


class LoadedQwenImage(LanguageModel):
    """The language model's last states, as many as there are tokens; the padding is masked."""

    latents: ClassVar = PerChannel()

    def encode_part(self, part: str, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts one by one: `embeds` [tokens, dim], each of its own length, float32."""
        rows = []
        for prompt in prompts:
            ids, mask = self.read_prompt(TEXT, CHAT.format(prompt), TOKENS + BEFORE)
            own = upload(ids[mask.bool()][None], self._ctx.device)
            states = self.states(own, torch.ones_like(own))[-1]
            rows.append(Conditioning({"embeds": states[0, BEFORE:].float()}))
        return rows

    def collate(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Fill texts up with zeros to [B, longest, dim]; `mask` [B, longest] int64 is 0 there."""
        rows = [c.tensors["embeds"] for c in conditionings]
        ones = [torch.ones(len(row), dtype=torch.int64, device=row.device) for row in rows]
        return Conditioning(
            {
                "embeds": pad_sequence(rows, batch_first=True),
                "mask": pad_sequence(ones, batch_first=True),
            }
        )

    def denoise(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict noise - x0 in float32 from z_t [B, C, h, w] at times t [B]."""
        [embeds] = self.inputs(cond, "embeds")
        device, (b, _, h, w) = self._ctx.device, z_t.shape
        velocity = self.run(
            hidden_states=packed(z_t.to(device, embeds.dtype)),
            timestep=t.to(device, torch.float32),
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=cond.tensors["mask"].to(device),
            img_shapes=[[(1, h // 2, w // 2)]] * b,
        )
        return unpacked(velocity.float(), (h, w))

    def answer(
        self, pipe: Any, prompts: Sequence[str], z_t: Tensor, t: Tensor, rows: Sequence[RowGeometry]
    ) -> tuple[Conditioning, Tensor]:
        """Return what diffusers reads and predicts (see `LoadedModel.answer`)."""
        with self.on_device(pipe.text_encoder):
            embeds, mask = pipe.encode_prompt(list(prompts), device=self._ctx.device)
        if mask is None:  # all texts are of one length
            mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        (b, c, h, w), dtype = z_t.shape, pipe.transformer.dtype
        with self.on_device(pipe.transformer):
            velocity = pipe.transformer(
                hidden_states=pipe._pack_latents(z_t.to(dtype), b, c, h, w),
                timestep=t,
                encoder_hidden_states=embeds,
                encoder_hidden_states_mask=mask,
                img_shapes=[[(1, h // 2, w // 2)]] * b,
            ).sample
        scale = pipe.vae_scale_factor
        found = pipe._unpack_latents(velocity, h * scale, w * scale, scale)
        return Conditioning({"embeds": embeds, "mask": mask}), found.squeeze(2)

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
        (h, w), scale = latents.shape[-2:], pipe.vae_scale_factor
        with self.on_device(pipe.text_encoder):
            tokens = self.drawn_by(
                pipe, solver, packed(latents), steps, prompt=prompt, negative_prompt=negative,
                height=h * scale, width=w * scale, true_cfg_scale=guidance,
            )  # fmt: skip
        return unpacked(tokens, (h, w))
