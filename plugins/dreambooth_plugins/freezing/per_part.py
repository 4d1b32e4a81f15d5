"""What the default policies share: rates, weight decay and a time of training for each part."""

from __future__ import annotations

from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from dreambooth import FreezingPolicy, Problem
from dreambooth.errors import JobError
from dreambooth.interfaces import ParameterGroup, Stage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from dreambooth import Job
    from dreambooth.interfaces import ModelInfo

Name = Annotated[str, Field(min_length=1)]
Rate = Annotated[float, Field(gt=0.0)]
Decay = Annotated[float, Field(ge=0.0)]
When = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0.0, lt=1.0)]
"""A number of optimizer steps, or (below 1) a share of all of them."""


class PerPart(FreezingPolicy):
    """A policy whose parts have their own learning rate, weight decay, start and end."""

    lr: dict[Name, Rate] = Field(default={})
    """Learning rate of a part, by its folder name; the others use the optimizer's."""
    weight_decay: dict[Name, Decay] = Field(default={})
    """Weight decay of a part, by its folder name; the others use the optimizer's."""
    start: dict[Name, When] = Field(default={})
    """When a part begins to train, by its folder name: optimizer steps, or a share of all of
    them below 1. The others train from the first step."""
    until: dict[Name, When] = Field(default={})
    """When a part stops training: `{text_encoder: 0.3}` trains it for the first 30 %. Its
    embeddings are kept again from then on, so the steps after it are faster."""

    def unit(self, name: str) -> str:
        """Return what the options of a parameter are looked up under: its part."""
        return part_of(name)

    def decay_of(self, unit: str) -> float | None:
        """Return the weight decay of a part (or another unit); None takes the optimizer's."""
        return self.weight_decay.get(unit)

    def groups(self, names: Sequence[str]) -> list[ParameterGroup]:
        """Split by rate and decay: parts that share both share a group, in order of appearance."""
        by_rates: dict[tuple[float | None, float | None], list[str]] = {}
        for name in names:
            unit = self.unit(name)
            rates = (self.lr.get(unit), self.decay_of(unit))
            by_rates.setdefault(rates, []).append(name)
        return [ParameterGroup(tuple(group), *rates) for rates, group in by_rates.items()]

    def stages(self, names: Sequence[str], steps: int) -> list[Stage]:
        """Return a stage for each stretch in which the same parts train."""
        spans = {unit: self.span(unit, steps) for unit in {self.unit(name) for name in names}}
        borders = sorted({0, steps, *(step for span in spans.values() for step in span)})
        borders = [step for step in borders if step <= steps]
        return [
            Stage(end, frozenset(n for n in names if _covers(spans[self.unit(n)], begin)))
            for begin, end in pairwise(borders)
        ]

    def span(self, part: str, steps: int) -> tuple[int, int]:
        """Return the first step a part trains in, and the first after that in which it does not."""
        begin, end = self.start.get(part), self.until.get(part)
        return (
            0 if begin is None else in_steps(begin, steps),
            steps if end is None else in_steps(end, steps),
        )

    def depends_on_end(self) -> bool:
        """Say that shares of the steps move when there are more of them."""
        return any(isinstance(when, float) for when in (*self.start.values(), *self.until.values()))

    def part_problems(self, job: Job, trained: Collection[str]) -> Iterator[Problem]:
        """Find options of parts that do not train, and times at which nothing would."""
        options: dict[str, Mapping[str, float]] = {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "start": self.start,
            "until": self.until,
        }
        wrong = [
            without_effect(("freezing", option, name), name, trained)
            for option, values in options.items()
            for name in values
            if name not in trained
        ]
        yield from wrong
        if not wrong and (self.start or self.until):
            yield from self._time_problems(job.train.steps, trained)

    def _time_problems(self, steps: int, trained: Collection[str]) -> Iterator[Problem]:
        spans = {part: self.span(part, steps) for part in trained}
        empty = [part for part, (begin, end) in spans.items() if begin >= min(end, steps)]
        for part in empty:
            begin, end = spans[part]
            yield Problem(
                ("freezing", "start" if part in self.start else "until", part),
                f'"{part}" would never train: from step {begin} to step {min(end, steps)}',
                f"the run has {steps} steps; give it a stretch of them",
            )
        if empty:
            return
        for stage in self.stages([f"{part}." for part in trained], steps):
            if not stage.names:
                yield Problem(
                    ("freezing", "until" if self.until else "start"),
                    f"nothing would train in the steps before step {stage.until}",
                    "let the stretches of the parts meet",
                )


class NamedParts(PerPart):
    """A policy that names the parts it trains in."""

    train: list[Name] = Field(default=["unet"], min_length=1)
    """Parts that train, by their diffusers folder name (`unet`, `text_encoder`, `transformer`) or
    by role (`denoiser`, `text_encoders`)."""

    @field_validator("train", mode="after")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        if isinstance(value, str):  # a policy that takes a word for it as well
            return value
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return value

    def names(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the parts and roles that are named."""
        return tuple(self.train)

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find names the model does not have, parts no loss reaches, options without effect."""
        if info is None:
            return
        for i, name in enumerate(self.names(info)):
            yield from check_part(("freezing", "train", i), name, job, info)
        yield from self.part_problems(job, self.units(info))

    def units(self, info: ModelInfo) -> frozenset[str]:
        """Return what options may be given for: the named parts that the model has."""
        return frozenset(p for n in self.names(info) if known(n, info) for p in info.part_names(n))

    def trained_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the named parts."""
        return self.named_parts(info)

    def named_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the named parts, roles resolved; `JobError` where the model lacks one."""
        for i, name in enumerate(self.names(info)):
            if not known(name, info):
                problem = unknown(("freezing", "train", i), name, info)
                raise JobError(problem.message, problem.hint)
        return info.part_names(*self.names(info))


def part_of(name: str) -> str:
    """Return the part a qualified parameter name begins with."""
    return name.split(".", 1)[0]


def in_steps(when: float, steps: int) -> int:
    """Return a number of steps for a number or a share of them."""
    return when if isinstance(when, int) else max(1, round(when * steps))


def _covers(span: tuple[int, int], step: int) -> bool:
    return span[0] <= step < span[1]


def without_effect(at: tuple[str | int, ...], name: str, trained: Collection[str]) -> Problem:
    """Return the problem of an option for a part that does not train."""
    close = get_close_matches(name, trained, n=1)
    meant = f'did you mean "{close[0]}"? ' if close else ""
    return Problem(
        at,
        f'"{name}" is not a part that trains here, so its {at[1]} has no effect',
        f"{meant}parts that train: {', '.join(sorted(trained))}",
    )


def known(name: str, info: ModelInfo) -> bool:
    """Say whether the model has a part or a role of this name."""
    return name in info.roles or name in info.parts


def check_part(
    at: tuple[str | int, ...], name: str, job: Job, info: ModelInfo
) -> Iterator[Problem]:
    """Find what is wrong with naming a part or role as one that trains."""
    if not known(name, info):
        yield unknown(at, name, info)
        return
    parts = info.part_names(name)
    if not parts:
        yield Problem(at, f'this model has no part in the role "{name}"', choices(info))
    reached = set(info.part_names("denoiser", "text_encoders"))
    vae = set(info.roles.get("vae", ()))
    for part in parts:
        if part in vae and "trains_vae" not in job.loss.required():
            yield Problem(
                at,
                f'loss "{job.loss.kind}" is computed on latents and gives "{part}" no gradient',
                f'take "{name}" out of freezing.train, or use a loss that trains the VAE',
            )
        elif part in info.frozen:
            yield Problem(
                at, f'"{part}" is {info.frozen[part]}, which stays frozen here', choices(info)
            )
        elif part not in reached | vae:
            yield Problem(at, f'"{part}" takes no part in the training loss', choices(info))


def unknown(at: tuple[str | int, ...], name: str, info: ModelInfo) -> Problem:
    """Return the problem of a name that is no part or role of the model."""
    close = get_close_matches(name, [*info.parts, *info.roles], n=1)
    meant = f'did you mean "{close[0]}"? ' if close else ""
    return Problem(at, f'the model has no part or role "{name}"', meant + choices(info))


def choices(info: ModelInfo) -> str:
    """Name what can be trained in this model."""
    parts = [p for role in ("denoiser", "text_encoders") for p in info.roles.get(role, ())]
    return f"it can train: {', '.join(part for part in parts if part not in info.frozen)}"
