"""An opened Stable Diffusion 3 model: how it reads prompts and times, and what it predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional

from dreambooth.interfaces import Conditioning
from dreambooth_plugins.formats.lora.native_rules import SD3, SD3_SWAPPED
from dreambooth_plugins.model.flow.loaded import FlowFolder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dreambooth.interfaces import RowGeometry

TOKENS = 256
"""Tokens T5 reads of a prompt; the padding is attended to."""
TIME = 1000.0
"""The transformer takes s times this, whatever its schedule says."""
T5 = "text_encoder_3"


class LoadedSD3(FlowFolder):
    """Both CLIP encoders' states side by side, T5's behind them, and both pooled texts."""

    native: ClassVar = SD3

    def swapped(self) -> tuple[str, ...]:
        """Return the last modulation, and that of the last block's text."""
        last = self.source.part_config("transformer")["num_layers"] - 1
        return (*SD3_SWAPPED, f"joint_blocks.{last}.context_block.adaLN_modulation.1")

    def encode_part(self, part: str, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts: `embeds` [tokens, dim] and of CLIP `pooled` [dim], float32."""
        if part == T5:
            ids, _ = self.read_texts(part, prompts, TOKENS)
            states = self._through(part, lambda text: text(ids)).last_hidden_state
            return [Conditioning({"embeds": row}) for row in states.float()]
        # The pipeline reads as many tokens with both as the first one's tokenizer takes.
        length = self.tokenizer_of("text_encoder").model_max_length
        ids, _ = self.read_texts(part, prompts, length)
        found = self._through(part, lambda text: text(ids, output_hidden_states=True))
        rows = zip(found.hidden_states[-2].float(), found[0].float(), strict=True)
        return [Conditioning({"embeds": row, "pooled": pooled}) for row, pooled in rows]

    def joined(self, pieces: Mapping[str, Conditioning]) -> Conditioning:
        """Put CLIP's states side by side, filled up to T5's width, and T5's behind them."""
        first, second = (pieces[p].tensors for p in ("text_encoder", "text_encoder_2"))
        width = self.source.part_config("transformer")["joint_attention_dim"]
        clips = torch.cat([first["embeds"], second["embeds"]], dim=-1)
        clips = functional.pad(clips, (0, width - clips.shape[-1]))
        behind = pieces[T5].tensors["embeds"] if T5 in pieces else clips.new_zeros(TOKENS, width)
        pooled = torch.cat([first["pooled"], second["pooled"]])
        return Conditioning({"embeds": torch.cat([clips, behind]), "pooled": pooled})

    def denoise(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict noise - x0 in float32 from z_t [B, C, h, w] at times t [B]."""
        embeds, pooled = self.inputs(cond, "embeds", "pooled")
        return self.run(
            hidden_states=z_t.to(self._ctx.device, embeds.dtype),
            timestep=t.to(self._ctx.device, torch.float32) * TIME,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
        ).float()

    def answer(
        self, pipe: Any, prompts: Sequence[str], z_t: Tensor, t: Tensor, rows: Sequence[RowGeometry]
    ) -> tuple[Conditioning, Tensor]:
        """Return what diffusers reads and predicts (see `LoadedModel.answer`)."""
        texts = list(prompts)
        with self.on_device(*self._encoders(pipe)):
            embeds, _, pooled, _ = pipe.encode_prompt(
                texts, texts, texts, device=self._ctx.device, do_classifier_free_guidance=False
            )
        with self.on_device(pipe.transformer):
            velocity = pipe.transformer(
                hidden_states=z_t.to(pipe.transformer.dtype),
                timestep=t * pipe.scheduler.config.num_train_timesteps,
                encoder_hidden_states=embeds,
                pooled_projections=pooled,
            ).sample
        return Conditioning({"embeds": embeds, "pooled": pooled}), velocity

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
        height, width = (side * pipe.vae_scale_factor for side in latents.shape[-2:])
        with self.on_device(*self._encoders(pipe)):
            return self.drawn_by(
                pipe, solver, latents, steps, prompt=prompt, negative_prompt=negative,
                height=height, width=width, guidance_scale=guidance,
            )  # fmt: skip

    @staticmethod
    def _encoders(pipe: Any) -> list[Any]:
        found = (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3)
        return [encoder for encoder in found if encoder is not None]

    def index_options(self) -> Mapping[str, Any]:
        """Return that there are no extras, and no T5 where the source has none."""
        extras = ("image_encoder", "feature_extractor", *self.info.absent)
        return {name: [None, None] for name in extras}
