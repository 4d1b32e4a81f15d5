"""Train whole parts of the model, the way the DreamBooth paper does."""

from __future__ import annotations

from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from dreambooth import FreezingPolicy, Problem
from dreambooth.errors import JobError, RunError
from dreambooth.interfaces import ParameterGroup

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.nn import Parameter

    from dreambooth import Job
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo

Name = Annotated[str, Field(min_length=1)]
Rate = Annotated[float, Field(gt=0.0)]
Decay = Annotated[float, Field(ge=0.0)]


class Components(FreezingPolicy):
    """Train every parameter of the named parts and freeze the others (arXiv:2208.12242).

    Training the text encoder along with the denoiser helps likeness most, faces above all.
    """

    kind: Literal["components"] = "components"
    train: list[Name] = Field(default=["unet", "text_encoder"], min_length=1)
    """Parts that train, by their diffusers folder name (`unet`, `text_encoder`, `transformer`) or
    by role (`denoiser`, `text_encoders`)."""
    lr: dict[Name, Rate] = Field(default={})
    """Learning rate of a part, by its folder name; the others use the optimizer's."""
    weight_decay: dict[Name, Decay] = Field(default={})
    """Weight decay of a part, by its folder name; the others use the optimizer's."""
    reference: Literal["frozen_copy"] | None = None
    """Keep the base beside what trains, for losses and priors that compare with it (`dco`,
    `self_distilled_prior`, `mirror`). `frozen_copy` costs the weights of denoiser and text
    encoders once more in memory (3.7 GiB for Stable Diffusion 1.5 in float32, half of it in
    bfloat16; `dbt run --dry-run` counts it). Adapters need no copy: they are switched off."""

    @field_validator("train", mode="after")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return value

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find names the model does not have, parts no loss reaches, and rates without effect."""
        yield from self._check_reference(job)
        if info is None:
            return
        for i, name in enumerate(self.train):
            yield from _check_part(("freezing", "train", i), name, job, info)
        trained = {p for n in self.train if _known(n, info) for p in info.part_names(n)}
        for option, values in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            for name in values:
                if name not in trained:
                    yield _without_effect(("freezing", option, name), name, trained)

    def _check_reference(self, job: Job) -> Iterator[Problem]:
        asked = job.loss.required() & {"reference", "class_reference"} or job.prior.needs_base()
        if self.reference and not asked:
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

    def trained_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the named parts, roles resolved; `JobError` where the model lacks one."""
        for i, name in enumerate(self.train):
            if not _known(name, info):
                problem = _unknown(("freezing", "train", i), name, info)
                raise JobError(problem.message, problem.hint)
        return info.part_names(*self.train)

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return every parameter of the named parts."""
        return dict(model.named_parameters(*self.trained_parts(model.info)))

    def groups(self, names: Sequence[str]) -> list[ParameterGroup]:
        """Split by rate and decay: parts that share both share a group, in order of appearance."""
        by_rates: dict[tuple[float | None, float | None], list[str]] = {}
        for name in names:
            part = name.split(".", 1)[0]
            rates = (self.lr.get(part), self.weight_decay.get(part))
            by_rates.setdefault(rates, []).append(name)
        return [ParameterGroup(tuple(group), *rates) for rates, group in by_rates.items()]


def _known(name: str, info: ModelInfo) -> bool:
    return name in info.roles or name in info.parts


def _check_part(
    at: tuple[str | int, ...], name: str, job: Job, info: ModelInfo
) -> Iterator[Problem]:
    if not _known(name, info):
        yield _unknown(at, name, info)
        return
    parts = info.part_names(name)
    if not parts:
        yield Problem(at, f'this model has no part in the role "{name}"', _choices(info))
    reached = set(info.part_names("denoiser", "text_encoders"))
    vae = set(info.roles.get("vae", ()))
    for part in parts:
        if part in vae and "trains_vae" not in job.loss.required():
            yield Problem(
                at,
                f'loss "{job.loss.kind}" is computed on latents and gives "{part}" no gradient',
                f'take "{name}" out of freezing.train, or use a loss that trains the VAE',
            )
        elif part not in reached | vae:
            yield Problem(at, f'"{part}" takes no part in the training loss', _choices(info))


def _unknown(at: tuple[str | int, ...], name: str, info: ModelInfo) -> Problem:
    close = get_close_matches(name, [*info.parts, *info.roles], n=1)
    meant = f'did you mean "{close[0]}"? ' if close else ""
    return Problem(at, f'the model has no part or role "{name}"', meant + _choices(info))


def _choices(info: ModelInfo) -> str:
    """Name what can be trained in this model."""
    parts = [p for role in ("denoiser", "text_encoders") for p in info.roles.get(role, ())]
    return f"it can train: {', '.join(parts)}"


def _without_effect(at: tuple[str | int, ...], name: str, trained: set[str]) -> Problem:
    close = get_close_matches(name, trained, n=1)
    meant = f'did you mean "{close[0]}"? ' if close else ""
    return Problem(
        at,
        f'"{name}" is not a part that trains here, so its {at[1]} has no effect',
        f"{meant}parts that train: {', '.join(sorted(trained))}",
    )
