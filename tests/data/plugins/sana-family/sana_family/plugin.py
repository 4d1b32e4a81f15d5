"""Sana, as a package of its own."""

from importlib import import_module
from typing import ClassVar, Literal

from dreambooth import hookimpl
from dreambooth.interfaces import FlowSpec, LatentSpec
from dreambooth_plugins.model.flow.base import FlowModel
from dreambooth_plugins.model.flow.info import flow_info
from dreambooth_plugins.model.folder.part import Part
from dreambooth_plugins.model.folder.source import read_json


class Sana(FlowModel):
    """Sana: a language model's states, masked, and an autoencoder of factor 32."""

    kind: Literal["sana"] = "sana"
    pipeline_class: ClassVar[str] = "SanaPipeline"
    parts: ClassVar[tuple[Part, ...]] = (
        Part("transformer", "denoiser", "diffusers", "SanaTransformer2DModel"),
        Part(
            "text_encoder", "text_encoders", "transformers", "Gemma2Model", "tokenizer",
            tokenizer_cls="GemmaTokenizer", frozen="a language model",
        ),
        Part("vae", "vae", "diffusers", "AutoencoderDC"),
    )  # fmt: skip

    def info(self, source):
        net, vae = source.part_config("transformer"), source.part_config("vae")
        solver = read_json(source.config / "scheduler" / "scheduler_config.json")
        shift = solver.get("flow_shift", solver.get("shift", 3.0))
        factor = 2 ** (len(vae["encoder_block_out_channels"]) - 1)
        presets = {"attention": ("to_q", "to_k", "to_v", "to_out.0")}
        schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift}
        return flow_info(
            source, schedule=schedule, latent=LatentSpec(net["in_channels"], factor, factor),
            presets=presets, flow=FlowSpec(density="uniform", begins="schedule"), family="sana",
            resolution=net["sample_size"] * factor, guidance_default=4.5, pipeline="SanaPipeline",
        )  # fmt: skip

    def loaded(self, info, source, ctx):
        return import_module("sana_family.loaded").LoadedSana(info, source, ctx)


@hookimpl
def register_models():
    return [Sana]
