"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dreambooth.interfaces import FlowSpec, LatentSpec, Usual
from dreambooth_plugins.model.clip_unet_info import described
from dreambooth_plugins.model.flow import parts as parts_of
from dreambooth_plugins.model.flow.base import FlowModel
from dreambooth_plugins.model.flow.info import (
    HEADS,
    JOINT_ATTENTION,
    LAYERS,
    T5,
    WIDTH,
    check_parts,
    flow_info,
    same,
)  # fmt: skip
from dreambooth_plugins.model.folder.kinds import none_or, whole

if TYPE_CHECKING:
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo
    from dreambooth_plugins.model.folder.part import Part
    from dreambooth_plugins.model.folder.source import Source

TRANSFORMER = {
    "attention_head_dim": whole(1, 1024),
    "caption_projection_dim": WIDTH,
    "in_channels": WIDTH,
    "joint_attention_dim": WIDTH,
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "out_channels": none_or(WIDTH),
    "patch_size": whole(1, 16),
    "pooled_projection_dim": WIDTH,
    "pos_embed_max_size": whole(1, 4096),
    "sample_size": whole(1, 4096),
}
PRESETS = {
    "attention": JOINT_ATTENTION,
    "attention+mlp": (
        *JOINT_ATTENTION, "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    ),
    "authors": JOINT_ATTENTION,
}  # fmt: skip
"""diffusers' script trains the first attention alone; Medium's second one (`attn2`) is one of
`all_linear`."""
PUBLISHED = {24: ("sd3_m", "3-medium"), 38: ("sd3_l", "3.5-large")}
USUAL = Usual(
    source="sd-scripts' Stable Diffusion 3 settings",
    lora=True,
    lora_rank=16,
    sampling_steps=28,
    lora_parts=("transformer",),
)
WORDS = (
    "T5 reads the words as well and stays frozen, and diffusers' Stable Diffusion 3 loads no "
    "learned words"
)


class StableDiffusion3(FlowModel):
    """Stable Diffusion 3 and 3.5: two CLIP encoders, T5, a transformer over plain latents.

    T5 may be absent: the transformer then gets zeros in its place, as the pipeline gives it.
    """

    kind: Literal["sd3"] = "sd3"
    pipeline_class: ClassVar[str] = "StableDiffusion3Pipeline"
    parts: ClassVar[tuple[Part, ...]] = parts_of.SD3

    def info(self, source: Source) -> ModelInfo:
        """Describe the model (see `FolderModel.info`)."""
        return described(source, _read)

    def loaded(self, info: ModelInfo, source: Source, ctx: Context) -> LoadedModel:
        """Return the opened model."""
        from dreambooth_plugins.model.flow.sd3_loaded import LoadedSD3

        return LoadedSD3(info, source, ctx)


def _read(source: Source) -> ModelInfo:
    configs = check_parts(source, {"transformer": TRANSFORMER, "text_encoder_3": T5})
    net, vae = configs["transformer"], configs["vae"]
    clips = [configs[part] for part in ("text_encoder", "text_encoder_2")]
    factor, patch = 2 ** (len(vae["block_out_channels"]) - 1), net["patch_size"]
    pooled = sum(clip["projection_dim"] for clip in clips)
    same(source, "pooled text", net["pooled_projection_dim"], pooled)
    same(source, "latents", net["in_channels"], vae["latent_channels"])
    if "text_encoder_3" in configs:
        same(source, "text", net["joint_attention_dim"], configs["text_encoder_3"]["d_model"])
    turbo = "turbo" in str(net.get("_name_or_path", "")).lower()
    kohya, modelspec = PUBLISHED.get(net["num_layers"], ("", ""))
    published = {"kohya": kohya, "modelspec": f"stable-diffusion-{modelspec}"} if kohya else {}
    return flow_info(
        source,
        latent=LatentSpec(vae["latent_channels"], factor, factor * patch, patch=patch),
        presets=PRESETS,
        flow=FlowSpec(begins="schedule"),
        family="sd3",
        resolution=net["sample_size"] * factor,
        guidance_default=7.0,
        distilled="stabilityai/stable-diffusion-3.5-large" if turbo else "",
        pipeline="StableDiffusion3Pipeline",
        layouts={"kohya": "", "comfyui": ""},
        no_words=WORDS,
        usual=USUAL,
        absent=() if "text_encoder_3" in configs else ("text_encoder_3", "tokenizer_3"),
        names={"title": "Stable Diffusion 3", **published},
    )
