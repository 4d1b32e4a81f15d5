"""What models of CLIP text encoders and a UNet share: Stable Diffusion 1.x and 2.x, SDXL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dreambooth.helpers.transfer import upload
from dreambooth.interfaces import Conditioning
from dreambooth_plugins.common.dtypes import dtype_of
from dreambooth_plugins.formats.lora import diffusers, kohya
from dreambooth_plugins.formats.lora.naming import sort_tensors
from dreambooth_plugins.formats.original.names import LAYOUT, to_original
from dreambooth_plugins.model.folder.loaded import LoadedFolder
from dreambooth_plugins.model.folder.loading import skeleton

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from torch.nn import Module

    from dreambooth.interfaces import AdapterTensors


def _adaptable(module: Module) -> bool:
    return isinstance(module, torch.nn.Linear | torch.nn.Conv2d)


class ClipUNet(LoadedFolder):
    """CLIP text encoders, a UNet and a VAE; all frozen, in eval mode."""

    def read_prompts(self, part: str, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the token ids of prompts on the device and their masks on the CPU, int64
        [B, length]: padded to the tokenizer's full length."""
        config: Any = self.parts[part].config
        length = min(self.tokenizer_of(part).model_max_length, config.max_position_embeddings)
        ids, masks = zip(*(self.read_prompt(part, p, length) for p in prompts), strict=True)
        return upload(torch.stack(ids), self._ctx.device), torch.stack(masks)

    def collate(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Stack embeddings to [B, tokens, dim]; all have the same length."""
        names = conditionings[0].tensors
        return Conditioning(
            {name: torch.stack([c.tensors[name] for c in conditionings]) for name in names}
        )

    def predict(
        self, z_t: Tensor, t: Tensor, cond: Conditioning, added: Mapping[str, Any]
    ) -> Tensor:
        """Predict in float32 from z_t [B, C, h, w], t [B] and `embeds` [B, tokens, dim]."""
        dtype = dtype_of(self.parts["unet"])
        embeds = cond.tensors["embeds"].to(self._ctx.device, dtype)
        z_t, t = z_t.to(self._ctx.device, dtype), t.to(self._ctx.device)
        prediction: Tensor = self._through(
            "unet", lambda unet: unet(z_t, t, embeds, **added).sample
        )
        return prediction.float()

    def texts_of(self, pipe: Any, prompt: str, negative: str) -> Mapping[str, Any]:
        """Return the texts of a picture, as the pipeline's call takes them."""
        raise NotImplementedError  # abstract

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
        pipe.scheduler = solver
        pipe.set_progress_bar_config(disable=True)
        texts = self.texts_of(pipe, prompt, negative)
        factor = self.info.latent.factor
        with self.on_device(pipe.unet):
            drawn: Tensor = pipe(
                **texts,
                latents=latents.to(pipe.unet.dtype),
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="latent",
                height=latents.shape[-2] * factor,
                width=latents.shape[-1] * factor,
            ).images
        return drawn

    def adapter_keys(self, layout: str) -> Mapping[str, str]:
        """Map the qualified names of linear and convolution layers to those of a file layout.

        `diffusers`: with the `text_model.` that other versions of transformers have. `kohya`:
        `lora_unet_...` and `lora_te_text_model_...`, underscores for dots.
        """
        files = {
            f"{part}.{name}": f"{part}.{self.source.part(part).file_name(name)}"
            for part in self.info.part_names("denoiser", "text_encoders")
            for name, module in skeleton(self.source, part).named_modules()
            if _adaptable(module)
        }
        if layout == diffusers.LAYOUT:
            return files
        if layout != kohya.LAYOUT:
            raise KeyError(layout)
        return kohya.module_names(files, self._configs())

    def adapter_file(self, layout: str, adapters: Sequence[AdapterTensors]) -> dict[str, Tensor]:
        """Name the tensors of adapters as `diffusers` or `kohya` do."""
        names = self.adapter_keys(layout)
        if layout == kohya.LAYOUT:
            return kohya.file_tensors(names, adapters)
        return diffusers.file_tensors(names, adapters, self.info.part_names("denoiser"))

    def read_adapter(self, tensors: Mapping[str, Tensor]) -> list[AdapterTensors]:
        """Sort the tensors of a file with diffusers', PEFT's, kohya's or LyCORIS' names."""
        known: Mapping[str, str] = {}
        if kohya.is_kohya(tensors):
            both = (self.adapter_keys(layout) for layout in (kohya.LAYOUT, diffusers.LAYOUT))
            known = kohya.read_names(*both)
        return sort_tensors(tensors, known)

    def convert(self, part: str, tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
        """Give a part's tensors the names of the `original` layout (see `LoadedModel.convert`)."""
        if layout != LAYOUT:
            return super().convert(part, tensors, layout)
        return to_original(part, tensors, self._configs(), self.source.part(part).original)

    def _configs(self) -> dict[str, Mapping[str, Any]]:
        return {name: self.source.part_config(name) for name in self.parts}
