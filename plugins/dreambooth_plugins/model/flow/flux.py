"""FLUX.1."""

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
    LAYERS,
    T5,
    WIDTH,
    check_parts,
    flow_info,
    read_schedule,
    same,
)  # fmt: skip
from dreambooth_plugins.model.folder.kinds import FLAG, none_or, whole

if TYPE_CHECKING:
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo
    from dreambooth_plugins.model.folder.part import Part
    from dreambooth_plugins.model.folder.source import Source

TRANSFORMER = {
    "attention_head_dim": whole(2, 1024),
    "axes_dims_rope": AXES,
    "guidance_embeds": FLAG,
    "in_channels": WIDTH,
    "joint_attention_dim": WIDTH,
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "num_single_layers": LAYERS,
    "out_channels": none_or(WIDTH),
    "patch_size": whole(1, 1),
    "pooled_projection_dim": WIDTH,
}
DEFAULTS = {"axes_dims_rope": (16, 56, 56), "num_layers": 19}
"""What published configurations leave to diffusers."""
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
PRESETS = {
    "attention": JOINT_ATTENTION,
    "attention+mlp": (
        *JOINT_ATTENTION, *FEED_FORWARD,
        "single_transformer_blocks.*.proj_mlp", "single_transformer_blocks.*.proj_out",
    ),
    "authors": (*JOINT_ATTENTION, *FEED_FORWARD),
}  # fmt: skip
USUAL = Usual(
    source="sd-scripts' and ai-toolkit's FLUX.1 settings",
    lora=True,
    lora_rank=16,
    sampling_steps=28,
    lora_parts=("transformer",),
)
DOUBLE, WORDS = 19, (
    "FLUX.1 takes a pooled text from its CLIP encoder alone, and reads words with T5, which stays "
    "frozen"
)  # fmt: skip


class Flux(FlowModel):
    """FLUX.1 dev, and what is made from it (Krea); schnell is distilled, and warned about.

    A CLIP encoder, T5 and a transformer that takes guidance as an input: 1.0 in training, which
    keeps what it was distilled to do, and its own when pictures are drawn.
    """

    kind: Literal["flux"] = "flux"
    pipeline_class: ClassVar[str] = "FluxPipeline"
    parts: ClassVar[tuple[Part, ...]] = parts_of.FLUX

    def info(self, source: Source) -> ModelInfo:
        """Describe the model (see `FolderModel.info`)."""
        return described(source, _read)

    def loaded(self, info: ModelInfo, source: Source, ctx: Context) -> LoadedModel:
        """Return the opened model."""
        from dreambooth_plugins.model.flow.flux_loaded import LoadedFlux

        return LoadedFlux(info, source, ctx)


def _read(source: Source) -> ModelInfo:
    configs = check_parts(source, {"transformer": TRANSFORMER, "text_encoder_2": T5})
    net, vae = {**DEFAULTS, **configs["transformer"]}, configs["vae"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    same(
        source, "pooled text", net["pooled_projection_dim"], configs["text_encoder"]["hidden_size"]
    )
    same(source, "text", net["joint_attention_dim"], configs["text_encoder_2"]["d_model"])
    same(source, "tokens of latents", net["in_channels"], 4 * vae["latent_channels"])
    same(source, "heads", net["attention_head_dim"], sum(net["axes_dims_rope"]))
    embedded = bool(net.get("guidance_embeds"))
    # Both are told by schnell's own files: it takes no guidance, and its schedule has no shift.
    schnell = not embedded and not read_schedule(source.config).get("use_dynamic_shifting")
    published = {"kohya": "flux1", "modelspec": "flux-1-schnell" if schnell else "flux-1-dev"}
    return flow_info(
        source,
        latent=LatentSpec(vae["latent_channels"], factor, 2 * factor, patch=2),
        presets=PRESETS,
        flow=FlowSpec(),
        family="flux",
        resolution=128 * factor,
        guidance="embedded" if embedded else "none" if schnell else "cfg",
        guidance_default=3.5,
        distilled="black-forest-labs/FLUX.1-dev" if schnell else "",
        pipeline="FluxPipeline",
        layouts={"kohya": "", "comfyui": ""},
        no_words=WORDS,
        usual=USUAL,
        names={"title": "FLUX.1", **(published if net["num_layers"] == DOUBLE else {})},
    )
