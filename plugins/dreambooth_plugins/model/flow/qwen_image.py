"""Qwen-Image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dreambooth.interfaces import FlowSpec, LatentSpec, Usual
from dreambooth_plugins.model.clip_unet_info import described
from dreambooth_plugins.model.flow import parts as parts_of
from dreambooth_plugins.model.flow.base import FlowModel
from dreambooth_plugins.model.flow.info import (
    AXES,
    HEADS,
    JOINT_ATTENTION,
    LANGUAGE_MODEL,
    LAYERS,
    WIDTH,
    check_parts,
    flow_info,
    same,
)
from dreambooth_plugins.model.folder.kinds import NO, many, real, whole

if TYPE_CHECKING:
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo
    from dreambooth_plugins.model.folder.part import Part
    from dreambooth_plugins.model.folder.source import Source

TRANSFORMER = {
    "attention_head_dim": whole(2, 1024),
    "axes_dims_rope": AXES,
    "guidance_embeds": NO,
    "in_channels": WIDTH,
    "joint_attention_dim": WIDTH,
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "out_channels": WIDTH,
    "patch_size": whole(2, 2),
    "use_additional_t_cond": NO,
    "use_layer3d_rope": NO,
    "zero_cond_t": NO,
}
"""Edit and layered models have the last three."""
AUTOENCODER = {
    "base_dim": WIDTH,
    "dim_mult": many(whole(1, 64), 8),
    "latents_mean": many(real(-1e3, 1e3), 256),
    "latents_std": many(real(1e-6, 1e3), 256),
    "num_res_blocks": whole(1, 64),
    "z_dim": whole(1, 256),
}
PRESETS = {
    "attention": JOINT_ATTENTION,
    "attention+mlp": (
        *JOINT_ATTENTION,
        "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    ),
    "authors": ("to_q", "to_k", "to_v", "to_out.0"),
}  # fmt: skip
DEPTH = 60
USUAL = Usual(
    source="musubi-tuner's Qwen-Image settings",
    lora=True,
    lora_rank=16,
    lora_lr=5e-5,
    sampling_steps=50,
    lora_parts=("transformer",),
)
WORDS = "Qwen-Image reads words with a language model, which stays frozen"


class QwenImage(FlowModel):
    """Qwen-Image, 2512 included: a vision-language model's states, masked; a video autoencoder."""

    kind: Literal["qwen_image"] = "qwen_image"
    pipeline_class: ClassVar[str] = "QwenImagePipeline"
    parts: ClassVar[tuple[Part, ...]] = parts_of.QWEN_IMAGE

    def info(self, source: Source) -> ModelInfo:
        """Describe the model (see `FolderModel.info`)."""
        return described(source, _read)

    def loaded(self, info: ModelInfo, source: Source, ctx: Context) -> LoadedModel:
        """Return the opened model."""
        from dreambooth_plugins.model.flow.qwen_image_loaded import LoadedQwenImage

        return LoadedQwenImage(info, source, ctx)


def _read(source: Source) -> ModelInfo:
    kinds = {"transformer": TRANSFORMER, "text_encoder": LANGUAGE_MODEL, "vae": AUTOENCODER}
    configs = check_parts(source, kinds)
    net, vae, text = (configs[part] for part in ("transformer", "vae", "text_encoder"))
    factor = 2 ** len(vae.get("temperal_downsample", (False, True, True)))
    width = text.get("text_config", text)["hidden_size"]
    same(source, "text", net["joint_attention_dim"], width)
    same(source, "tokens of latents", net["in_channels"], 4 * vae["z_dim"])
    published = {"kohya": "qwen_image", "modelspec": "Qwen-Image"}
    return flow_info(
        source,
        latent=LatentSpec(vae["z_dim"], factor, 2 * factor, patch=2),
        presets=PRESETS,
        flow=FlowSpec(steps=50, renormalised=True),
        family="qwen_image",
        resolution=128 * factor,
        guidance_default=4.0,
        pipeline="QwenImagePipeline",
        layouts={"comfyui": "", "kohya": ""},
        no_words=WORDS,
        usual=USUAL,
        names={"title": "Qwen-Image", **(published if net["num_layers"] == DEPTH else {})},
    )
