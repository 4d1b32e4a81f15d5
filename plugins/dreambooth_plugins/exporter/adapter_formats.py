"""What the default adapter formats can and cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dreambooth.interfaces import ArtifactKind, Exporter
from dreambooth_plugins.exporter.options import Dtype
from dreambooth_plugins.exporter.usage import folder_usage, lora_usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from dreambooth import FreezingPolicy, Job
    from dreambooth.interfaces import Artifact, Check, Context, LoadedModel, ModelInfo

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
        return f"{text}, and the format has low-rank factors alone" if method in NO_PLACE else text
    return ""


class AdapterFile(Exporter):
    """A file with adapters alone."""

    accepts: ClassVar[frozenset[ArtifactKind]] = frozenset({"adapter"})
    dtype: Dtype = "fp32"
    """Precision of the stored weights; fp16 and bf16 halve the size."""


class Lora(AdapterFile):
    """`pytorch_lora_weights.safetensors` in diffusers' layout: opens with `load_lora_weights`.

    Ranks and alphas are in its metadata (`lora_adapter_metadata`). A learned word lies beside it
    (`learned_embeds.safetensors`).
    """

    kind: Literal["lora"] = "lora"

    def refusal(self, policy: FreezingPolicy) -> str:
        """Refuse what is neither LoRA nor DoRA."""
        return reason(policy, ("lora", "dora"))

    def write(
        self,
        artifact: Artifact,
        model: LoadedModel,
        dest: Path,
        ctx: Context,
        solver_config: Mapping[str, Any],
    ) -> None:
        """Write the adapters into `dest`."""
        from dreambooth_plugins.exporter.adapter_files import write_lora
        from dreambooth_plugins.exporter.embedding_files import write_word

        write_lora(artifact, model, dest, self.dtype)
        write_word(artifact, dest, self.dtype)

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Load the file into a plain pipeline with diffusers and compare what it draws."""
        from dreambooth_plugins.exporter.adapter_check import check_file
        from dreambooth_plugins.exporter.adapter_files import low_rank

        return check_file(artifact, low_rank(artifact), model, dest, ctx, self.dtype)

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the file is opened."""
        return lora_usage(job, info, files, "pytorch_lora_weights.safetensors")


class Kohya(AdapterFile):
    """The layout of kohya's scripts, which AUTOMATIC1111, Forge and ComfyUI read.

    `<run>.safetensors` with an alpha a module, and `ss_*` metadata: base, trigger words, steps.
    A learned word lies beside it (`embeddings/<word>.safetensors`).
    """

    kind: Literal["kohya"] = "kohya"

    def refusal(self, policy: FreezingPolicy) -> str:
        """Refuse all but LoRA: programs disagree about the axis of DoRA's magnitudes."""
        dora = "the programs that read it disagree about the axis of DoRA's magnitudes"
        return reason(policy, ("lora",), dora=dora)

    def write(
        self,
        artifact: Artifact,
        model: LoadedModel,
        dest: Path,
        ctx: Context,
        solver_config: Mapping[str, Any],
    ) -> None:
        """Write the adapters and what the run was into `dest`."""
        from dreambooth_plugins.exporter.embedding_files import write_word
        from dreambooth_plugins.exporter.kohya_file import write_kohya

        write_kohya(artifact, model, dest, ctx, self.dtype)
        write_word(artifact, dest, self.dtype)

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Load the file into a plain pipeline with diffusers and compare what it draws."""
        from dreambooth_plugins.exporter.adapter_check import check_file
        from dreambooth_plugins.exporter.adapter_files import low_rank
        from dreambooth_plugins.exporter.kohya_file import with_one_alpha

        adapters = with_one_alpha(low_rank(artifact))
        return check_file(artifact, adapters, model, dest, ctx, self.dtype)

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the file is opened."""
        return lora_usage(job, info, files, f"{job.name}.safetensors")


class Merged(Exporter):
    """The adapter folded into the base: a diffusers folder like that of full tuning.

    Opens everywhere, and is as large as the base.
    """

    kind: Literal["merged"] = "merged"
    accepts: ClassVar[frozenset[ArtifactKind]] = frozenset({"adapter"})
    reads_whole_model: ClassVar[bool] = True
    dtype: Dtype = "fp32"
    """Precision of the stored weights; fp16 and bf16 halve the size."""

    def write(
        self,
        artifact: Artifact,
        model: LoadedModel,
        dest: Path,
        ctx: Context,
        solver_config: Mapping[str, Any],
    ) -> None:
        """Write the whole model into `dest`."""
        from dreambooth_plugins.exporter.merging import merged_weights

        weights = merged_weights(artifact, model)
        model.save(dest, solver_config, weights, self.dtype)

    def verify(self, artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context) -> Check:
        """Open the folder with diffusers and compare weights and what it draws."""
        from dreambooth_plugins.exporter.comparison import FOLDED
        from dreambooth_plugins.exporter.diffusers_check import check_folder
        from dreambooth_plugins.exporter.merging import merged_weights

        return check_folder(
            merged_weights(artifact, model),
            model,
            dest,
            ctx,
            self.dtype,
            live=artifact.tensors,
            tolerance=FOLDED,
        )

    def usage(self, job: Job, info: ModelInfo, files: Sequence[str]) -> str:
        """Return how the folder is opened."""
        return folder_usage(job)
