"""An opened Sana model."""

from inspect import signature

import torch
from diffusers import SanaPipeline

from dreambooth.interfaces import Conditioning, Latents
from dreambooth_plugins.model.flow.language import TEXT, LanguageModel

TOKENS, TIME = 300, 1000.0
ASKED = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class DeepCompression:
    """Latents without a distribution, times the autoencoder's scale."""

    def encode(self, vae, pixels):
        return Latents(vae.encode(pixels).latent * vae.config.scaling_factor, None)

    def decode(self, vae, latents):
        return vae.decode(latents / vae.config.scaling_factor).sample


class LoadedSana(LanguageModel):
    """The states of a prompt behind an instruction; of the empty prompt, without one."""

    latents = DeepCompression()

    def encode_part(self, part, prompts):
        """Encode prompts: `embeds` [300, dim] and `mask` [300]."""
        return [self._encoded(prompt.lower().strip()) for prompt in prompts]

    def _encoded(self, prompt):
        asked = "\n".join(ASKED) if prompt else ""
        self.tokenizer_of(TEXT).padding_side = "right"
        before = len(self.tokenizer_of(TEXT).encode(asked)) - 2 if asked else 0
        read = self.read_prompt(TEXT, asked + prompt, before + TOKENS)
        ids, mask = (row[None].to(self._ctx.device) for row in read)
        kept = [0, *range(-TOKENS + 1, 0)]
        return Conditioning({"embeds": self.states(ids, mask)[-1][0, kept], "mask": mask[0, kept]})

    def denoise(self, z_t, t, cond):
        """Predict noise - x0."""
        [embeds] = self.inputs(cond, "embeds")
        return self.run(
            hidden_states=z_t.to(embeds), encoder_hidden_states=embeds,
            encoder_attention_mask=cond.tensors["mask"].to(embeds.device),
            timestep=t.to(embeds.device) * TIME * self.network.config.timestep_scale,
        ).float()  # fmt: skip

    def answer(self, pipe, prompts, z_t, t, rows):
        """Return what diffusers reads and predicts."""
        both = [
            pipe.encode_prompt(p, False, complex_human_instruction=ASKED if p else None)
            for p in prompts
        ]
        embeds, mask = (torch.cat([found[i] for found in both]) for i in (0, 1))
        time = t * TIME * pipe.transformer.config.timestep_scale
        found = pipe.transformer(z_t, embeds, time, None, mask).sample
        return Conditioning({"embeds": embeds, "mask": mask}), found

    def draw(self, pipe, prompt, negative, latents, solver, steps, guidance):
        """Return what diffusers draws."""
        height, width = (side * pipe.vae_scale_factor for side in latents.shape[-2:])
        return self.drawn_by(
            pipe, solver, latents, steps, prompt=prompt, negative_prompt=negative, height=height,
            width=width, guidance_scale=guidance, use_resolution_binning=False,
        )  # fmt: skip
