"""Adapters on the blocks that decide content, or style."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from dreambooth import Problem
from dreambooth.errors import JobError
from dreambooth.interfaces.freezing import ArtifactKind
from dreambooth_plugins.freezing.adapter.methods import METHODS, Method
from dreambooth_plugins.freezing.per_part import PerPart

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth import Job
    from dreambooth.interfaces import Artifact, Context, LoadedModel, ModelInfo
    from dreambooth_plugins.freezing.adapter.policy import Adapter

LORA: Any = "lora"
Block = Literal["content", "style"]


class BlockPreset(PerPart):
    """An adapter on the attention of the blocks that decide content, or style.

    B-LoRA (arXiv:2403.14572) trains two blocks of SDXL, one for what is seen and one for how it
    looks, and draws the one with the other. SD 1.x and 2.x have no such two blocks; there the
    resolution decides (arXiv:2303.09522): `content` is the attention at the lowest resolution
    and in the middle, `style` that at the highest. A model in which nothing of the kind is known,
    or whose attention is all at one resolution, is refused.
    """

    kind: Literal["block_preset"] = "block_preset"
    artifacts: ClassVar[frozenset[ArtifactKind]] = frozenset({"adapter"})
    blocks: list[Block] = Field(default=["content"], min_length=1)
    """Which blocks get an adapter."""
    method: Annotated[Method, METHODS] = LORA
    """The method and its options; the bare name is short for its defaults."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find a model without such blocks, and options of other parts."""
        if info is None:
            return
        for i, block in enumerate(self.blocks):
            if block not in info.blocks:
                yield Problem(("freezing", "blocks", i), *_none(block, info))
        if all(block in info.blocks for block in self.blocks):
            yield from self.part_problems(job, self.trained_parts(info))

    def trained_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the parts the blocks are in."""
        globs = [glob for block in self.blocks for glob in info.blocks.get(block, ())]
        return tuple(dict.fromkeys(glob.split(".", 1)[0] for glob in globs))

    def adapter_methods(self) -> frozenset[str]:
        """Return the method's kind."""
        return frozenset({self.method.kind})

    def _adapter(self, info: ModelInfo) -> Adapter:
        """Return the adapter policy that does the work."""
        from dreambooth_plugins.freezing.adapter.policy import Adapter

        for block in self.blocks:
            if block not in info.blocks:
                raise JobError(*_none(block, info))
        parts = self.trained_parts(info)
        targets = [
            f"{glob}.{name}"
            for block in self.blocks
            for glob in info.blocks[block]
            for name in info.adapter_targets[glob.split(".", 1)[0]]
        ]
        return Adapter(train=list(parts), method=self.method, targets=targets, lr=self.lr)

    def prepare(self, model: LoadedModel, ctx: Context) -> None:
        """Put the adapters onto the blocks."""
        self._adapter(model.info).prepare(model, ctx)

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return the parameters of the adapters."""
        return self._adapter(model.info).trainable(model)

    def notes(self, model: LoadedModel, ctx: Context) -> list[str]:
        """Return the blocks, then what the adapter policy says of itself."""
        blocks = f"adapters on {' and '.join(self.blocks)} blocks"
        return [blocks, *self._adapter(model.info).notes(model, ctx)]

    def showing_base(self, model: LoadedModel) -> AbstractContextManager[None]:
        """Show the base: adapters off."""
        return self._adapter(model.info).showing_base(model)

    def artifact(self, model: LoadedModel, weights: Mapping[str, Tensor]) -> Artifact:
        """Return the adapters."""
        return self._adapter(model.info).artifact(model, weights)

    def at(self, folder: Path) -> Adapter:
        """Return an adapter policy beginning with what an exporter wrote into `folder`."""
        from dreambooth_plugins.freezing.adapter.policy import Adapter

        return Adapter(method=self.method, init=folder)


def _none(block: str, info: ModelInfo) -> tuple[str, str]:
    known = ", ".join(info.blocks)
    return (
        f"this model ({info.family}) has no blocks known to decide {block}",
        f"it has: {known}"
        if known
        else "its attention is at one resolution alone, or nothing is known of the family: use "
        "freezing: adapter, with globs as targets",
    )
