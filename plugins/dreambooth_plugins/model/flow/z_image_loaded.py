"""An opened Z-Image model: texts of unequal length, and a network with time turned round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from dreambooth.helpers.transfer import upload
from dreambooth.interfaces import Conditioning
from dreambooth_plugins.common.autoencoders import KL
from dreambooth_plugins.model.flow.language import LanguageModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.interfaces import RowGeometry

TOKENS = 512
"""Tokens of a prompt at most, the chat's own included."""
STEPS = 1000.0
"""1 - s is rounded as the pipeline rounds it: the network multiplies it by a thousand."""


class LoadedZImage(LanguageModel):
    """The language model's last but one states of the tokens there are: no padding, no mask.

    The network's time is 1 - s and its answer x0 - noise: both are turned round here.
    """

    latents: ClassVar = KL(sampled=False)

    def encode_part(self, part: str, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts: `embeds` [tokens, dim], each of its own length, float32.

        Padded in the language model, as the pipeline has it, and cut behind it.
        """
        rows = []
        for prompt in prompts:
            ids, mask = (row[None] for row in self.read_chat(prompt, TOKENS, thinking=True))
            device = self._ctx.device
            states = self.states(upload(ids, device), upload(mask, device))[-2][0]
            own = upload(mask[0].nonzero()[:, 0], device)  # by place: `meta` has no values to see
            rows.append(Conditioning({"embeds": states[own].float()}))
        return rows

    def collate(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Fill texts up with zeros to [B, longest, dim]; `length` [B] int64, on the CPU, says how
        many tokens of each are its own."""
        rows = [c.tensors["embeds"] for c in conditionings]
        length = torch.tensor([len(row) for row in rows])
        return Conditioning({"embeds": pad_sequence(rows, batch_first=True), "length": length})

    def denoise(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict noise - x0 in float32 from z_t [B, C, h, w] at times t [B]."""
        [embeds] = self.inputs(cond, "embeds")
        lengths = cond.tensors["length"].tolist()
        device = self._ctx.device
        answer: Any = self.run(
            x=list(z_t.to(device, embeds.dtype).unsqueeze(2)),
            t=(STEPS - STEPS * t.to(device, torch.float32)) / STEPS,
            cap_feats=[row[:length] for row, length in zip(embeds, lengths, strict=True)],
        )
        return -torch.stack(list(answer)).squeeze(2).float()

    def answer(
        self, pipe: Any, prompts: Sequence[str], z_t: Tensor, t: Tensor, rows: Sequence[RowGeometry]
    ) -> tuple[Conditioning, Tensor]:
        """Return what diffusers reads and predicts (see `LoadedModel.answer`)."""
        with self.on_device(pipe.text_encoder):
            texts, _ = pipe.encode_prompt(
                list(prompts), device=self._ctx.device, do_classifier_free_guidance=False
            )
        length = torch.tensor([len(text) for text in texts])
        told = Conditioning({"embeds": pad_sequence(texts, batch_first=True), "length": length})
        with self.on_device(pipe.transformer):
            found = pipe.transformer(
                list(z_t.to(pipe.transformer.dtype).unsqueeze(2)), (1000 - 1000 * t) / 1000, texts
            ).sample
        return told, -torch.stack(list(found)).squeeze(2)

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

        Its guidance is pos + g (pos - neg), one less than the usual scale.
        """
        height, width = (side * pipe.vae_scale_factor for side in latents.shape[-2:])
        scale = guidance - 1.0 if self.info.guidance == "cfg" else 0.0
        with self.on_device(pipe.text_encoder):
            return self.drawn_by(
                pipe, solver, latents, steps, prompt=prompt, negative_prompt=negative,
                height=height, width=width, guidance_scale=scale,
            )  # fmt: skip
