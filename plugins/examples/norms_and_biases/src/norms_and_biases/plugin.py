"""Norms and biases: a thousandth of the weights, in UNets and in transformers alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth import FreezingPolicy, Problem, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dreambooth import Job
    from dreambooth.interfaces import LoadedModel, ModelInfo
    from torch.nn import Module, Parameter


class NormsAndBiases(FreezingPolicy):
    """Train what scales and shifts: the weights of norm layers and every bias of the denoiser.

    Layers are told by what they are, not by their names, so that it serves every family: group and
    layer norms of UNets, RMS norms and adaptive norms of diffusion transformers.
    """

    kind: Literal["norms_and_biases"] = "norms_and_biases"
    norms: bool = True
    """Train the weights of norm layers."""
    biases: bool = True
    """Train the biases of every layer."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Something must be left to train."""
        if not (self.norms or self.biases):
            yield Problem(("freezing",), "nothing trains", "set norms or biases to true")

    def trained_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the denoiser's parts: texts are encoded once and kept."""
        return info.part_names("denoiser")

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return norms and biases by qualified name."""
        return {
            f"{part}.{name}": parameter
            for part in model.info.part_names("denoiser")
            for name, parameter in chosen(model.parts[part], self.norms, self.biases)
        }


def chosen(network: Module, norms: bool, biases: bool) -> Iterator[tuple[str, Parameter]]:
    """Yield the names and parameters of a network's norm layers and biases.

    A norm layer is one whose class is named so (`GroupNorm`, `LayerNorm`, `RMSNorm`, ...) and that
    has a weight of one dimension; the projections within adaptive norms are no norms.
    """
    for prefix, layer in network.named_modules():
        is_norm = "Norm" in type(layer).__name__
        for name, parameter in layer.named_parameters(prefix, recurse=False):
            ending = name.rpartition(".")[2]
            scale = norms and is_norm and ending == "weight" and parameter.dim() == 1
            if scale or (biases and ending == "bias"):
                yield name, parameter


@hookimpl
def register_freezing_policies() -> list[type[FreezingPolicy]]:
    """Bring the policy."""
    return [NormsAndBiases]
