"""The freezing slot: what trains, at which rate, and what comes out of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dreambooth.component import Component
from dreambooth.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth.component.model_info import ModelInfo
    from dreambooth.interfaces.context import Context
    from dreambooth.interfaces.model import LoadedModel

ArtifactKind = Literal["weights", "adapter", "embedding"]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay; None takes the optimizer's."""

    names: tuple[str, ...]
    lr: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Stage:
    """A stretch of training in which only `names` get gradients."""

    until: int
    """First optimizer step that no longer belongs to the stage."""
    names: frozenset[str]


@dataclass(frozen=True)
class Artifact:
    """What a run made, before an exporter writes it."""

    kind: ArtifactKind
    tensors: Mapping[str, Tensor]
    """By qualified name."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What a file format needs besides (ranks, alphas, token strings)."""


class FreezingPolicy(Component):
    """Decides what trains. Hook: `register_freezing_policies`. Only `trainable` is required.

    Order at set-up: the model is opened, `prepare` may inject modules or add token rows,
    `trainable` names what learns, the engine freezes everything else, casts what trains to
    float32 and builds the optimizer.
    """

    artifacts: ClassVar[frozenset[ArtifactKind]] = frozenset({"weights"})
    """Kinds of artifact this policy can end in; an exporter must accept one of them."""

    def trained_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the parts in which something trains, as far as known before weights are read.

        The others can be cached and leave memory. The default, every denoiser and text encoder
        part, is always safe.
        """
        return info.part_names("denoiser", "text_encoders")

    def adapter_methods(self) -> frozenset[str]:
        """Return the methods of the adapters it trains (`lora`, `dora`, `lokr`, ...), if any.

        File formats that can hold only some of them refuse the others (`Exporter.refusal`).
        """
        return frozenset()

    def learns_word(self) -> bool:
        """Say whether the identifier gets tokens of its own (`LoadedModel.add_tokens`).

        It then need not be a rare word of the model's vocabulary, and must not be in it.
        """
        return "embedding" in self.artifacts

    def prepare(self, model: LoadedModel, ctx: Context) -> None:
        """Inject adapters or add token rows, before `trainable`; the default does nothing.

        Injection renames base parameters: patterns match the names before it.
        """

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return what trains, by qualified name (see `LoadedModel.named_parameters`)."""
        raise NotImplementedError  # abstract

    def groups(self, names: Sequence[str]) -> list[ParameterGroup]:
        """Split the trainable names into groups with their own rates; the default is one group."""
        return [ParameterGroup(tuple(names))]

    def stages(self, names: Sequence[str], steps: int) -> list[Stage]:
        """Return stages in order; the default trains everything for all steps.

        What a stage leaves out gets no gradient and no update while it lasts. Where a stage
        trains no text encoder, texts are encoded once when it begins, and kept. Each name is in
        one stage at least, each stage has names, and the last one reaches `steps`.
        """
        return [Stage(steps, frozenset(names))]

    def depends_on_end(self) -> bool:
        """Say whether more steps would move the stages of the earlier ones."""
        return False

    def notes(self, model: LoadedModel, ctx: Context) -> list[str]:
        """Return what the policy found in the model, a line each, for the plan and the log.

        Asked after `prepare`; in the plan the model is on the `meta` device, without weights.
        """
        return []

    def after_step(self, model: LoadedModel) -> None:
        """Mend what an optimizer step must not have touched (frozen rows of an embedding)."""

    def showing_base(self, model: LoadedModel) -> AbstractContextManager[LoadedModel | None]:
        """Make the predictions of the base available for a block; the caller wants no gradients.

        Yields None where `model` itself shows the base (its adapters switched off), or the model
        to ask instead (a frozen copy). Entered before the trained forward, never between forward
        and backward. Raises `RunError` where the policy cannot do it; see `base_hint`.
        """
        raise RunError(
            f'freezing policy "{self.kind}" does not keep the base: it changes its weights',
            self.base_hint(),
        )

    def base_hint(self) -> str:
        """Return what to do where `showing_base` cannot work; empty where it does."""
        if type(self).showing_base is not FreezingPolicy.showing_base:
            return ""
        return "use an adapter policy, or a loss and a prior that do without the base"

    def keeps_base(self) -> bool:
        """Say whether `prepare` keeps a frozen copy (`LoadedModel.keep_base`), for the plan."""
        return False

    def lighter(self) -> FreezingPolicy | None:
        """Return a policy for the same parts that takes less memory, to be named where it lacks."""
        return None

    def at(self, folder: Path) -> FreezingPolicy | None:
        """Return this policy beginning with what an exporter of its artifact wrote into `folder`.

        None where that cannot be read back into the base: a run is then drawn from its
        checkpoints alone.
        """
        return None

    def artifact(self, model: LoadedModel, weights: Mapping[str, Tensor]) -> Artifact:
        """Return what the run made from the final (or EMA) weights of what trained."""
        return Artifact("weights", weights)
