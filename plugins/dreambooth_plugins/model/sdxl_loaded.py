"""An opened SDXL model: how it reads prompts and sizes, and what it predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dreambooth.helpers.transfer import upload
from dreambooth.interfaces import Conditioning
from dreambooth_plugins.common.dtypes import dtype_of
from dreambooth_plugins.formats.model_spec import has_zero_terminal_snr
from dreambooth_plugins.formats.original.names import LAYOUT
from dreambooth_plugins.model.clip_unet import ClipUNet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dreambooth.interfaces import RowGeometry

_FIRST, _SECOND = "text_encoder", "text_encoder_2"


class LoadedSDXL(ClipUNet):
    """UNet and text encoders in the run's dtype, the VAE in float32; all frozen, in eval mode.

    The published VAE overflows in half precision, so it never runs in it.
    """

    def encode_prompts(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts: `embeds` [tokens, dim] and `pooled` [dim] each, float32.

        The embeddings are the last but one hidden states of both encoders side by side (Podell et
        al. 2023, arXiv:2307.01952, section 2.1); `pooled` is the second encoder's projected one.
        Both see every prompt padded to the tokenizers' full length.
        """
        pieces = {part: self.encode_part(part, prompts) for part in (_FIRST, _SECOND)}
        rows = zip(*pieces.values(), strict=True)
        return [self.joined(dict(zip(pieces, row, strict=True))) for row in rows]

    def encode_part(self, part: str, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts with one encoder: `embeds` [tokens, dim], of the second `pooled` too."""
        embeds, pooled = self._hidden(part, prompts)
        if part == _FIRST:
            return [Conditioning({"embeds": row}) for row in embeds]
        both = zip(embeds, pooled, strict=True)
        return [Conditioning({"embeds": row, "pooled": one}) for row, one in both]

    def joined(self, pieces: Mapping[str, Conditioning]) -> Conditioning:
        """Put both encoders' states side by side; `pooled` is the second one's."""
        first, second = pieces[_FIRST].tensors, pieces[_SECOND].tensors
        embeds = torch.cat([first["embeds"], second["embeds"]], dim=-1)
        return Conditioning({"embeds": embeds, "pooled": second["pooled"]})

    def _hidden(self, part: str, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return an encoder's last but one hidden states, and its first output, float32."""
        rows, _ = self.read_prompts(part, prompts)
        found = self._through(part, lambda text: text(rows, output_hidden_states=True))
        return found.hidden_states[-2].float(), found[0].float()

    def condition(
        self, cond: Conditioning, rows: Sequence[RowGeometry], *, guidance: float | None = None
    ) -> Conditioning:
        """Add `time_ids` [B, 6] float32: original size, crop corner, target size of each row."""
        ids = [[*r.original_size, *r.crop_top_left, *r.target_size] for r in rows]
        added = upload(torch.tensor(ids, dtype=torch.float32), self._ctx.device)
        return Conditioning({**cond.tensors, "time_ids": added})

    def denoise(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict epsilon or v in float32 from z_t [B, 4, h, w], t [B] and the conditioning."""
        added = {
            "text_embeds": cond.tensors["pooled"].to(
                self._ctx.device, dtype_of(self.parts["unet"])
            ),
            "time_ids": cond.tensors["time_ids"].to(self._ctx.device),
        }
        return self.predict(z_t, t, cond, {"added_cond_kwargs": added})

    def answer(
        self, pipe: Any, prompts: Sequence[str], z_t: Tensor, t: Tensor, rows: Sequence[RowGeometry]
    ) -> tuple[Conditioning, Tensor]:
        """Return what diffusers reads and predicts (see `LoadedModel.answer`)."""
        with self.on_device(pipe.text_encoder, pipe.text_encoder_2):
            embeds, _, pooled, _ = pipe.encode_prompt(
                list(prompts), device=self._ctx.device, do_classifier_free_guidance=False
            )
        width = pipe.text_encoder_2.config.projection_dim
        ids = torch.cat(
            [
                pipe._get_add_time_ids(
                    row.original_size, row.crop_top_left, row.target_size, torch.float32, width
                )
                for row in rows
            ]
        ).to(self._ctx.device)
        with self.on_device(pipe.unet):
            prediction = pipe.unet(
                z_t.to(pipe.unet.dtype),
                t,
                encoder_hidden_states=embeds,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
            ).sample
        return Conditioning({"embeds": embeds, "pooled": pooled, "time_ids": ids}), prediction

    def texts_of(self, pipe: Any, prompt: str, negative: str) -> Mapping[str, Any]:
        """Return the texts of a picture, as the pipeline's call takes them."""
        with self.on_device(pipe.text_encoder, pipe.text_encoder_2):
            embeds, empty, pooled, empty_pooled = pipe.encode_prompt(
                prompt, device=self._ctx.device, negative_prompt=negative
            )
        return {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": empty,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": empty_pooled,
        }

    def convert(self, part: str, tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
        """Give a part's tensors the names of a layout (see `LoadedModel.convert`).

        In the original one a model that predicts v has the empty tensors by which ComfyUI and Forge
        know it: `v_pred`, and `ztsnr` where the last timestep is pure noise.
        """
        named = super().convert(part, tensors, layout)
        if part == "unet" and layout == LAYOUT and self.info.prediction == "v_prediction":
            zero = has_zero_terminal_snr(self._ctx.job, self.info)
            named |= {mark: torch.zeros(0) for mark in ("v_pred", "ztsnr")[: 1 + zero]}
        return named

    def index_options(self) -> Mapping[str, Any]:
        """Return what the source says of an absent negative prompt, and that there are no extras.

        diffusers takes zeros for a negative prompt that is not given, and encodes an empty one;
        here it is always encoded, as other programs do.
        """
        from dreambooth_plugins.model.folder.source import read_json

        said = read_json(self.source.config / "model_index.json")
        return {
            "feature_extractor": [None, None],
            "force_zeros_for_empty_prompt": bool(said.get("force_zeros_for_empty_prompt", True)),
            "image_encoder": [None, None],
        }

    def pipeline_options(self) -> Mapping[str, Any]:
        """Return that pictures get no watermark: latents are compared."""
        return {"add_watermarker": False}
