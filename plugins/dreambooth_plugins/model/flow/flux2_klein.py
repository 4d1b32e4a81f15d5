"""FLUX.2 klein."""

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
    same,
)
from dreambooth_plugins.model.folder.kinds import NO, real, whole
from dreambooth_plugins.model.folder.plausible import VAE
from dreambooth_plugins.model.folder.source import read_json

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
    "mlp_ratio": real(0.1, 100.0),
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "num_single_layers": LAYERS,
    "patch_size": whole(1, 1),
    "timestep_guidance_channels": whole(2, 65536),
}
AUTOENCODER = {
    **{k: v for k, v in VAE.items() if k not in ("scaling_factor", "shift_factor")},
    "batch_norm_eps": real(0.0, 1.0),
}
ATTENTION = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    "single_transformer_blocks.*.attn.to_qkv_mlp_proj", "single_transformer_blocks.*.attn.to_out",
)  # fmt: skip
PRESETS = {
    "attention": ATTENTION,
    "attention+mlp": (
        *ATTENTION, "ff.linear_in", "ff.linear_out", "ff_context.linear_in",
        "ff_context.linear_out",
    ),
    "authors": tuple(name for name in ATTENTION if "add_" not in name),
}  # fmt: skip
"""Of single blocks attention and feed-forward are one layer. diffusers' script trains no layer of
the text's side."""
DEPTHS = {5: "4b", 8: "9b"}
USUAL = Usual(
    source="musubi-tuner's FLUX.2 settings",
    lora=True,
    lora_rank=32,
    sampling_steps=50,
    lora_parts=("transformer",),
)
WORDS = "FLUX.2 reads words with a language model, which stays frozen"


def empirical_mu(tokens: int, steps: int) -> float:
    """Return the logarithm of the shift: by tokens, and through 10 and 200 steps by a line."""
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = (many - few) / 190.0
    return slope * steps + many - 200.0 * slope


class Flux2Klein(FlowModel):
    """FLUX.2 klein base, 4B and 9B: a language model's layers, latents in patches, 4-D places.

    The distilled ones draw in four steps, and are warned about.
    """

    kind: Literal["flux2_klein"] = "flux2_klein"
    pipeline_class: ClassVar[str] = "Flux2KleinPipeline"
    parts: ClassVar[tuple[Part, ...]] = parts_of.FLUX2_KLEIN

    def info(self, source: Source) -> ModelInfo:
        """Describe the model (see `FolderModel.info`)."""
        return described(source, _read)

    def loaded(self, info: ModelInfo, source: Source, ctx: Context) -> LoadedModel:
        """Return the opened model."""
        from dreambooth_plugins.model.flow.flux2_klein_loaded import LoadedFlux2Klein

        return LoadedFlux2Klein(info, source, ctx)


def _read(source: Source) -> ModelInfo:
    kinds = {"transformer": TRANSFORMER, "text_encoder": LANGUAGE_MODEL, "vae": AUTOENCODER}
    configs = check_parts(source, kinds)
    net, vae, text = (configs[part] for part in ("transformer", "vae", "text_encoder"))
    factor = 2 ** len(vae["block_out_channels"])  # of the autoencoder, and its patches of 2 x 2
    same(
        source, "text", net["joint_attention_dim"], len(parts_of.KLEIN_LAYERS) * text["hidden_size"]
    )
    same(source, "latents", net["in_channels"], 4 * vae["latent_channels"])
    distilled = read_json(source.config / "model_index.json").get("is_distilled", False)
    size = DEPTHS.get(net["num_layers"], "")
    published = {"kohya": "flux2", "modelspec": f"flux-2-klein-{size}"} if size else {}
    return flow_info(
        source,
        latent=LatentSpec(net["in_channels"], factor, factor),
        presets=PRESETS,
        flow=FlowSpec(mu=empirical_mu, steps=50),
        family="flux2_klein",
        resolution=64 * factor,
        guidance="none" if distilled else "cfg",
        guidance_default=4.0,
        distilled="black-forest-labs/FLUX.2-klein-base of the same size" if distilled else "",
        pipeline="Flux2KleinPipeline",
        layouts={"comfyui": "", "kohya": ""},
        no_words=WORDS,
        usual=USUAL,
        names={"title": "FLUX.2 klein", **published},
    )
