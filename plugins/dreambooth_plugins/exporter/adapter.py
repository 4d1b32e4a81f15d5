"""Adapters as files of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dreambooth import Problem
from dreambooth.interfaces.freezing import ArtifactKind
from dreambooth_plugins.exporter.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from dreambooth import FreezingPolicy, Job
    from dreambooth.interfaces import Artifact, Check, Context, LoadedModel, ModelInfo
    from dreambooth_plugins.formats.lora.low_rank import LowRank

NO_PLACE = {
    "loha": "LoHa's factors are multiplied elementwise",
    "lokr": "LoKr's factors are a Kronecker product",
    "oft": "OFT turns the weights instead of adding to them",
    "boft": "BOFT turns the weights instead of adding to them",
}
"""Why a method is no sum of two low-rank factors."""


def reason(policy: FreezingPolicy, holds: tuple[str, ...], **why: str) -> str:
    """Return why a format that holds `holds` cannot hold a policy's adapters; empty if it can."""
    for method in sorted(policy.adapter_methods() - {*holds}):
        text = why.get(method) or NO_PLACE.get(method, f"it has no place for {method}")
        plain = method in NO_PLACE and method not in why
        return f"{text}, and the format has low-rank factors alone" if plain else text
    return ""


class AdapterFile(Stored):
    """A file with adapters alone; a learned word lies beside it."""

    accepts: ClassVar[frozenset[ArtifactKind]] = frozenset({"adapter"})

    def write(
        self,
        artifact: Artifact,
        model: LoadedModel,
        dest: Path,
        ctx: Context,
        solver_config: Mapping[str, Any],
    ) -> None:
        """Write the adapters, and a learned word where there is one, into `dest`."""
        from dreambooth_plugins.formats.embedding import write_word

        self.write_adapters(artifact, model, dest, ctx)
        write_word(artifact, dest, self.dtype, model.info)

    def write_adapters(
        self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context
    ) -> None:
        """Write the adapters into `dest`."""
        raise NotImplementedError  # abstract

    def stored(self, artifact: Artifact) -> list[LowRank]:
        """Return the adapters as they are in the file."""
        from dreambooth_plugins.formats.lora.low_rank import low_rank

        return low_rank(artifact)

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Load the file into a plain pipeline with diffusers and compare what it draws."""
        from dreambooth_plugins.exporter.adapter_check import check_file

        return check_file(artifact, self.stored(artifact), model, dest, ctx, self.dtype)


class Lora(AdapterFile):
    """`pytorch_lora_weights.safetensors` in diffusers' layout: opens with `load_lora_weights`.

    Ranks and alphas are in its metadata (`lora_adapter_metadata`). A learned word lies beside it
    (`learned_embeds.safetensors`).
    """

    kind: Literal["lora"] = "lora"

    def refusal(self, policy: FreezingPolicy) -> str:
        """Refuse what is neither LoRA nor DoRA."""
        return reason(policy, ("lora", "dora"))

    def write_adapters(
        self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context
    ) -> None:
        """Write the adapters into `dest`."""
        from dreambooth_plugins.formats.lora import diffusers

        diffusers.write(artifact, model, dest, self.dtype)

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the file is opened."""
        from dreambooth_plugins.exporter.usage import lora_usage
        from dreambooth_plugins.formats.lora.diffusers import LORA_FILE

        return lora_usage(job, info, files, LORA_FILE)


class Kohya(AdapterFile):
    """The layout of kohya's scripts, which AUTOMATIC1111, Forge and ComfyUI read.

    `<run>.safetensors` with an alpha a module, and `ss_*` metadata: base, trigger words, steps.
    LoHa and LoKr have LyCORIS' names there. A learned word lies beside it
    (`embeddings/<word>.safetensors`).
    """

    kind: Literal["kohya"] = "kohya"
    layout: ClassVar[str] = "kohya"

    def refusal(self, policy: FreezingPolicy) -> str:
        """Refuse DoRA, since programs disagree about the axis of its magnitudes; OFT and BOFT."""
        dora = "the programs that read it disagree about the axis of DoRA's magnitudes"
        oft = "OFT turns the weights, and programs read it by rules of their own"
        boft = "BOFT turns the weights, and programs read it by rules of their own"
        return reason(policy, ("lora", "loha", "lokr"), dora=dora, oft=oft, boft=boft)

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find what `Stored` finds, and products of factors for layers that are one in the file."""
        from dreambooth_plugins.formats.lora.lycoris import METHODS

        yield from super().check(job, info)
        if info is not None and info.flow is not None and info.layouts.get(self.layout) == "":
            for method in sorted(job.freezing.adapter_methods() & {*METHODS}):
                why = f"has several layers of {info.family} in one, and {NO_PLACE[method]}"
                yield Problem(
                    ("exports",),
                    f"{self.kind} {why}",
                    "export it as merged, or train a LoRA",
                )

    def write_adapters(
        self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context
    ) -> None:
        """Write the adapters and what the run was into `dest`."""
        from dreambooth_plugins.formats.lora import kohya
        from dreambooth_plugins.formats.model_spec import file_name

        path = dest / file_name(ctx.job, "adapter")
        kohya.write(artifact, model, path, ctx.job, self.dtype, self.layout)

    def stored(self, artifact: Artifact) -> list[LowRank]:
        """Return the adapters with one alpha a part."""
        from dreambooth_plugins.formats.lora.kohya import with_one_alpha

        return with_one_alpha(super().stored(artifact))

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Compare as diffusers reads the file; what it does not read, update by update.

        That are LoHa and LoKr, by the rules of LyCORIS, AUTOMATIC1111 and ComfyUI, and transformers
        whose layers are fused in the file: it knows these in the published sizes alone.
        """
        from dreambooth_plugins.formats.lora.lycoris import METHODS

        kinds = {a["method"]["kind"] for a in artifact.metadata["adapters"].values()}
        if not kinds & {*METHODS} and model.info.flow is None:
            return super().verify(artifact, model, dest, ctx)
        from dreambooth_plugins.exporter.factors_check import check_factors
        from dreambooth_plugins.formats.model_spec import file_name

        file = dest / file_name(ctx.job, "adapter")
        return check_factors(artifact, model, file, self.dtype)

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the file is opened."""
        from dreambooth_plugins.exporter.usage import lora_usage, lycoris_usage
        from dreambooth_plugins.formats.lora.lycoris import METHODS
        from dreambooth_plugins.formats.model_spec import file_name

        how = lycoris_usage if job.freezing.adapter_methods() & {*METHODS} else lora_usage
        return how(job, info, files, file_name(job, "adapter"))


class ComfyUI(Kohya):
    """ComfyUI's own names of a transformer's LoRA: `diffusion_model.<module>`, as its makers call
    the modules.

    `<run>.safetensors`, the alpha multiplied into the weights. For FLUX.1, Stable Diffusion 3 and
    what came after; the older families' files are those of `kohya`.
    """

    kind: Literal["comfyui"] = "comfyui"  # type: ignore[assignment]
    layout: ClassVar[str] = "comfyui"

    def refusal(self, policy: FreezingPolicy) -> str:
        """Refuse all but LoRA: fused layers have no place for the other methods."""
        return reason(policy, ("lora",), dora="a fused layer has one magnitude for several")

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the file is opened."""
        from dreambooth_plugins.exporter.usage import comfyui_usage
        from dreambooth_plugins.formats.model_spec import file_name

        return comfyui_usage(job, info, files, file_name(job, "adapter"))


class Peft(AdapterFile):
    """PEFT's own folders, one a part: `PeftModel.from_pretrained(pipe.unet, 'unet')`.

    Holds every method, OFT and BOFT included. A learned word lies beside them
    (`learned_embeds.safetensors`).
    """

    kind: Literal["peft"] = "peft"

    def write_adapters(
        self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context
    ) -> None:
        """Write a folder for each part into `dest`."""
        from dreambooth_plugins.formats.lora import peft_folder

        peft_folder.write(artifact, model, dest, self.dtype)

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Load the folders into a plain pipeline with PEFT and compare what it draws."""
        from dreambooth_plugins.exporter.peft_check import check_folders

        return check_folders(artifact, model, dest, ctx, self.dtype)

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the folders are opened."""
        from dreambooth_plugins.exporter.usage import peft_usage

        return peft_usage(job, info, files)
