"""Z-Image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dreambooth.interfaces import FlowSpec, LatentSpec, Usual
from dreambooth_plugins.model.clip_unet_info import described
from dreambooth_plugins.model.flow import parts as parts_of
from dreambooth_plugins.model.flow.base import FlowModel
from dreambooth_plugins.model.flow.info import (
    AXES,
    HEADS,
    LANGUAGE_MODEL,
    LAYERS,
    WIDTH,
    check_parts,
    flow_info,
    read_schedule,
    same,
)
from dreambooth_plugins.model.folder.kinds import NULL, many, real, whole

if TYPE_CHECKING:
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo
    from dreambooth_plugins.model.folder.part import Part
    from dreambooth_plugins.model.folder.source import Source

TRANSFORMER = {
    "all_f_patch_size": many(whole(1, 1), 1),
    "all_patch_size": many(whole(2, 2), 1),
    "axes_dims": AXES,
    "axes_lens": many(whole(2, 2**20), 8),
    "cap_feat_dim": WIDTH,
    "dim": WIDTH,
    "in_channels": WIDTH,
    "n_heads": HEADS,
    "n_layers": LAYERS,
    "n_refiner_layers": LAYERS,
    "siglip_feat_dim": NULL,
    "t_scale": real(1.0, 1e6),
}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
IN_LAYERS = tuple(f"layers.*.attention.{name}" for name in ATTENTION)
PRESETS = {
    "attention": IN_LAYERS,
    "attention+mlp": (
        *IN_LAYERS,
        *(f"layers.*.feed_forward.{name}" for name in ("w1", "w2", "w3")),
    ),
    "authors": tuple(f"attention.{name}" for name in ATTENTION),
}
"""The refiners before the layers are left alone; diffusers' script trains their attention too."""
TURBO_SHIFT, DEPTH = 3.0, 30
USUAL = Usual(
    source="musubi-tuner's and ai-toolkit's Z-Image settings",
    lora=True,
    lora_rank=32,
    sampling_steps=50,
    lora_parts=("transformer",),
)
WORDS = "Z-Image reads words with a language model, which stays frozen"


class ZImage(FlowModel):
    """Z-Image: a language model and one stream of text and picture tokens.

    Turbo draws in eight steps without guidance, and is warned about.
    """

    kind: Literal["z_image"] = "z_image"
    pipeline_class: ClassVar[str] = "ZImagePipeline"
    parts: ClassVar[tuple[Part, ...]] = parts_of.Z_IMAGE

    def info(self, source: Source) -> ModelInfo:
        """Describe the model (see `FolderModel.info`)."""
        return described(source, _read)

    def loaded(self, info: ModelInfo, source: Source, ctx: Context) -> LoadedModel:
        """Return the opened model."""
        from dreambooth_plugins.model.flow.z_image_loaded import LoadedZImage

        return LoadedZImage(info, source, ctx)


def _read(source: Source) -> ModelInfo:
    kinds = {"transformer": TRANSFORMER, "text_encoder": LANGUAGE_MODEL}
    configs = check_parts(source, kinds)
    net, vae = configs["transformer"], configs["vae"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    same(source, "text", net["cap_feat_dim"], configs["text_encoder"]["hidden_size"])
    same(source, "latents", net["in_channels"], vae["latent_channels"])
    # What the published folders differ in besides their weights: the base shifts by 6.
    schedule = read_schedule(source.config)
    turbo = not schedule.get("use_dynamic_shifting") and schedule.get("shift") == TURBO_SHIFT
    published = {"kohya": "zimage", "modelspec": "z-image"} if net["n_layers"] == DEPTH else {}
    return flow_info(
        source,
        latent=LatentSpec(vae["latent_channels"], factor, 2 * factor, patch=2),
        presets=PRESETS,
        flow=FlowSpec(density="uniform", steps=50),
        family="z_image",
        resolution=128 * factor,
        guidance="none" if turbo else "cfg",
        guidance_default=6.0,
        distilled="Tongyi-MAI/Z-Image" if turbo else "",
        pipeline="ZImagePipeline",
        layouts={"comfyui": ""},
        no_words=WORDS,
        usual=USUAL,
        names={"title": "Z-Image", **published},
    )
