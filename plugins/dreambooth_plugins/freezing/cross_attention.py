"""Train the denoiser's cross-attention alone: how it reads the prompt."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dreambooth import Problem
from dreambooth.errors import JobError
from dreambooth_plugins.freezing.per_part import PerPart

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.nn import Parameter

    from dreambooth import Job
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo

Projection = Literal["to_q", "to_k", "to_v", "to_out"]


class CrossAttention(PerPart):
    """Train the keys and values of cross-attention, as Custom Diffusion does (arXiv:2212.04488).

    About 2 % of Stable Diffusion's UNet: learns faster than all of it, and forgets less. A
    learning rate of 1e-5 is usual.
    """

    kind: Literal["cross_attention"] = "cross_attention"
    projections: list[Projection] = Field(default=["to_k", "to_v"], min_length=1)
    """Which projections train: keys and values read the text, queries and the output the image."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find a model without cross-attention, and options of other parts."""
        if info is None:
            return
        if not self._parts(info):
            yield Problem(("freezing", "kind"), *_none(info))
            return
        yield from self.part_problems(job, self._parts(info))

    def trained_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the denoiser's parts that have cross-attention."""
        return self._parts(info)

    def _parts(self, info: ModelInfo) -> tuple[str, ...]:
        having = info.adapter_presets
        return tuple(
            p for p in info.part_names("denoiser") if "cross_attention" in having.get(p, {})
        )

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return the chosen projections' parameters."""
        found = {}
        for part in self._parts(model.info):
            layers = model.info.adapter_presets[part]["cross_attention"]
            wanted = [glob for glob in layers if set(glob.split(".")) & {*self.projections}]
            for name, parameter in model.named_parameters(part):
                if any(fnmatchcase(name, f"*.{glob}.*") for glob in wanted):
                    found[name] = parameter
        if not found:
            raise JobError(*_none(model.info))
        return found

    def notes(self, model: LoadedModel, ctx: Context) -> list[str]:
        """Return how many projections train."""
        layers = {name.rsplit(".", 1)[0] for name in self.trainable(model)}
        return [f"{', '.join(self.projections)} of cross-attention: {len(layers)} layers"]


def _none(info: ModelInfo) -> tuple[str, str]:
    return (
        f"nothing is known of cross-attention in this model ({info.family})",
        "use freezing: patterns, and name the parameters",
    )
