"""What opened flow-matching models share."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dreambooth.helpers.transfer import upload
from dreambooth.interfaces import Conditioning
from dreambooth_plugins.formats.lora.transformers import TransformerNames
from dreambooth_plugins.model.folder.loaded import LoadedFolder
from dreambooth_plugins.model.folder.loading import skeleton

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dreambooth.interfaces import AdapterTensors
    from dreambooth_plugins.formats.lora.native import Rules

DENOISER = "transformer"


class FlowFolder(LoadedFolder):
    """Text encoders, a transformer and a VAE; all frozen, in eval mode.

    t of `denoise` is the time s in [0, 1], its answer the velocity noise - x0.
    """

    def encode_prompts(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts, an encoder after the other: float32 tensors without a batch dimension."""
        parts = self.info.part_names("text_encoders")
        pieces = {part: self.encode_part(part, prompts) for part in parts}
        rows = zip(*pieces.values(), strict=True)
        return [self.joined(dict(zip(pieces, row, strict=True))) for row in rows]

    def encode_part(self, part: str, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts with one encoder alone."""
        raise NotImplementedError  # abstract

    def joined(self, pieces: Mapping[str, Conditioning]) -> Conditioning:
        """Return a prompt's conditioning of what each encoder made of it: all their tensors."""
        return Conditioning({n: t for piece in pieces.values() for n, t in piece.tensors.items()})

    def collate(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Stack tensors that all have the same length."""
        names = conditionings[0].tensors
        return Conditioning(
            {name: torch.stack([c.tensors[name] for c in conditionings]) for name in names}
        )

    def read_texts(self, part: str, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Return token ids and masks of prompts, int64 [B, length], padded; on the device."""
        ids, masks = zip(*(self.read_prompt(part, p, length) for p in prompts), strict=True)
        device = self._ctx.device
        return upload(torch.stack(ids), device), upload(torch.stack(masks), device)

    def inputs(self, cond: Conditioning, *names: str) -> list[Tensor]:
        """Return tensors of a conditioning on the device, in the denoiser's type."""
        dtype = self.network.dtype
        return [cond.tensors[name].to(self._ctx.device, dtype) for name in names]

    @property
    def network(self) -> Any:
        """The denoiser."""
        return self.parts[DENOISER]

    def run(self, **inputs: Any) -> Tensor:
        """Return the denoiser's answer to its inputs, by name."""
        answer: Tensor = self._through(DENOISER, lambda net: net(**inputs, return_dict=False)[0])
        return answer

    native: ClassVar[Rules] = {}
    """What the family's makers call its modules, where they have names of their own."""

    def adapter_keys(self, layout: str) -> Mapping[str, str]:
        """Map the qualified names of linear and convolution layers to those of a file layout.

        Layers that a layout has in one (a fused query, key and value) share a name there.
        """
        return self._names.keys(layout)

    def adapter_file(self, layout: str, adapters: Sequence[AdapterTensors]) -> dict[str, Tensor]:
        """Name the tensors of adapters as `diffusers`, `comfyui` or `kohya` do."""
        return self._names.file_tensors(layout, adapters)

    def read_adapter(self, tensors: Mapping[str, Tensor]) -> list[AdapterTensors]:
        """Sort the tensors of a file with diffusers', PEFT's, ComfyUI's or kohya's names."""
        return self._names.read(tensors)

    @cached_property
    def _names(self) -> TransformerNames:
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        parts = [p for p in self.source.parts if p.name not in self.info.frozen and p.role != "vae"]
        layers = {
            part.name: {
                name: module.weight.shape[0]
                for name, module in skeleton(self.source, part.name).named_modules()
                if isinstance(module, kinds)
            }
            for part in parts
        }
        files = {part.name: {n: part.file_name(n) for n in layers[part.name]} for part in parts}
        return TransformerNames(layers, files, self.native, self.swapped())

    def swapped(self) -> tuple[str, ...]:
        """Return the makers' modules that have scale and shift the other way round."""
        return ()

    def drawn_by(self, pipe: Any, solver: Any, latents: Tensor, steps: int, **call: Any) -> Tensor:
        """Return what a pipeline's call draws from `latents`, as it gives latents back."""
        pipe.scheduler = solver
        pipe.set_progress_bar_config(disable=True)
        with self.on_device(pipe.transformer):
            drawn: Tensor = pipe(
                latents=latents.to(pipe.transformer.dtype),
                num_inference_steps=steps,
                output_type="latent",
                **call,
            ).images
        return drawn


def packed(latents: Tensor) -> Tensor:
    """Return latents [B, C, h, w] as tokens of 2 x 2 cells, [B, (h / 2) (w / 2), 4 C]."""
    b, c, h, w = latents.shape
    cells = latents.reshape(b, c, h // 2, 2, w // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), 4 * c)


def unpacked(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return latents [B, C, h, w] of `size` (h, w) from tokens of 2 x 2 cells."""
    (b, _, c), (h, w) = tokens.shape, size
    cells = tokens.reshape(b, h // 2, w // 2, c // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, h, w)
