"""Sana, as a package of its own."""

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
        """Describe the model; its solver's shift is the schedule's."""
        net, vae = source.part_config("transformer"), source.part_config("vae")
        solver = read_json(source.config / "scheduler" / "scheduler_config.json")
        shift = solver.get("flow_shift", solver.get("shift", 3.0))
        factor = 2 ** (len(vae["encoder_block_out_channels"]) - 1)
        return flow_info(
            source,
            latent=LatentSpec(net["in_channels"], factor, factor),
            presets={"attention": ("to_q", "to_k", "to_v", "to_out.0")},
            flow=FlowSpec(density="uniform", begins="schedule"),
            schedule={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift},
            family="sana",
            resolution=net["sample_size"] * factor,
            guidance_default=4.5,
            pipeline="SanaPipeline",
        )

    def loaded(self, info, source, ctx):
        """Return the opened model."""
        from sana_family.loaded import LoadedSana

        return LoadedSana(info, source, ctx)


@hookimpl
def register_models():
    """Bring `sana`."""
    return [Sana]
