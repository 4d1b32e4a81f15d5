"""An opened Sana model: a language model's states, masked, and a network that takes 0 to 1000."""

from inspect import signature

import torch
from diffusers import SanaPipeline

from dreambooth.interfaces import Conditioning
from dreambooth_plugins.common.autoencoders import Deterministic
from dreambooth_plugins.model.flow.language import TEXT, LanguageModel

TOKENS, TIME = 300, 1000.0
ASKED = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class LoadedSana(LanguageModel):
    """The states of a prompt behind an instruction; of the empty prompt, without one."""

    latents = Deterministic()

    def encode_part(self, part, prompts):
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
        [embeds] = self.inputs(cond, "embeds")
        mask, t = (tensor.to(embeds.device) for tensor in (cond.tensors["mask"], t))
        time = t * TIME * self.network.config.timestep_scale
        inputs = {"hidden_states": z_t.to(embeds), "encoder_hidden_states": embeds}
        return self.run(**inputs, encoder_attention_mask=mask, timestep=time).float()

    def answer(self, pipe, prompts, z_t, t, rows):
        asked = [{"complex_human_instruction": ASKED if prompt else None} for prompt in prompts]
        both = [pipe.encode_prompt(p, False, **a) for p, a in zip(prompts, asked, strict=True)]
        embeds, mask = (torch.cat([found[i] for found in both]) for i in (0, 1))
        time = t * TIME * pipe.transformer.config.timestep_scale
        found = pipe.transformer(z_t, embeds, time, None, mask).sample
        return Conditioning({"embeds": embeds, "mask": mask}), found

    def draw(self, pipe, prompt, negative, latents, solver, steps, guidance):
        call = {"prompt": prompt, "negative_prompt": negative, "guidance_scale": guidance}
        height, width = (side * pipe.vae_scale_factor for side in latents.shape[-2:])
        call |= {"height": height, "width": width, "use_resolution_binning": False}
        return self.drawn_by(pipe, solver, latents, steps, **call)
