"""Train whole parts of the model, the way the DreamBooth paper does."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from dreambooth import Problem
from dreambooth.errors import RunError
from dreambooth_plugins.freezing.per_part import Name, NamedParts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch.nn import Parameter

    from dreambooth import Job
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo
    from dreambooth_plugins.freezing.adapter.policy import Adapter


class Components(NamedParts):
    """Train every parameter of the named parts and freeze the others (arXiv:2208.12242).

    Training the text encoder along with the denoiser helps likeness most, faces above all.
    """

    kind: Literal["components"] = "components"
    train: Literal["auto"] | Annotated[list[Name], Field(min_length=1)] = "auto"  # type: ignore[assignment]
    """Parts that train, by their diffusers folder name (`unet`, `text_encoder`, `transformer`) or
    by role (`denoiser`, `text_encoders`). `auto`: what is usual for the family, the UNet and the
    text encoder of Stable Diffusion 1.x and 2.x, the denoiser alone of the others."""
    reference: Literal["frozen_copy"] | None = None
    """Keep the base beside what trains, for losses and priors that compare with it (`dco`,
    `self_distilled_prior`, `mirror`). `frozen_copy` costs the weights of denoiser and text
    encoders once more in memory (3.7 GiB for Stable Diffusion 1.5 in float32, half of it in
    bfloat16; `dbt run --dry-run` counts it). Adapters need no copy: they are switched off."""

    def settled(self, describe: Callable[[], ModelInfo]) -> Self:
        """Return this policy with the parts of the family named."""
        if self.train != "auto":
            return self
        return self.model_copy(update={"train": list(self.names(describe()))})

    def names(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the named parts and roles; for `auto` those that are usual for the family."""
        return (info.trains or ("denoiser",)) if self.train == "auto" else super().names(info)

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find what `NamedParts` finds, and a copy of the base that nothing asks for."""
        yield from self._check_reference(job)
        yield from super().check(job, info)

    def _check_reference(self, job: Job) -> Iterator[Problem]:
        if self.reference is None:
            return
        asked = job.loss.required() & {"reference", "class_reference"} or job.prior.needs_base()
        if not asked:
            yield Problem(
                ("freezing", "reference"),
                "a frozen copy of the base would lie in memory, and neither loss nor prior of "
                "this job compares with it",
                "leave freezing.reference out",
            )

    def base_hint(self) -> str:
        """Explain the choice: a copy that costs memory, or a policy that needs none."""
        if self.reference:
            return ""
        return (
            "set freezing.reference: frozen_copy, which keeps the base's weights in memory a "
            "second time (dbt run --dry-run shows how much that is), or use a policy that leaves "
            "the base as it is, such as an adapter"
        )

    def keeps_base(self) -> bool:
        """Say whether there is a frozen copy."""
        return self.reference is not None

    def prepare(self, model: LoadedModel, ctx: Context) -> None:
        """Copy the base while it still is one."""
        if self.reference:
            model.keep_base()

    @contextmanager
    def showing_base(self, model: LoadedModel) -> Iterator[LoadedModel]:
        """Yield the frozen copy."""
        if model.base is None:
            raise RunError(
                "full training changes the base, and this run keeps no copy of it", self.base_hint()
            )
        yield model.base

    def lighter(self) -> Adapter:
        """Return adapters on the same parts."""
        from dreambooth_plugins.freezing.adapter.policy import Adapter

        return Adapter() if self.train == "auto" else Adapter(train=list(self.train))

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return every parameter of the named parts."""
        return dict(model.named_parameters(*self.trained_parts(model.info)))
