"""Slots: fields of a job that any installed component of the right base can fill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth import interfaces
from dreambooth.component import Component

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dreambooth.component import AnyJob


@dataclass(frozen=True)
class SlotInfo:
    """A slot's base class and the hook that fills it."""

    name: str
    base: type[Component]
    hook: str
    field: str
    """Where in a job the slot is filled; empty where a command takes its kinds, and no job."""
    also: tuple[str, ...] = ()
    """Further fields that take the same kinds."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field of a job that takes the slot's kinds."""
        return (self.field, *self.also) if self.field else ()

    @property
    def named_in(self) -> str:
        """Where a person names a kind: a key of a job, or an option of a command."""
        return self.field or COMMANDS[self.name]


COMMANDS = {"captioner": "dbt doctor --captions", "masker": "dbt doctor --masks"}
"""Options that take the kinds of slots which no job fills."""

SLOTS: Mapping[str, SlotInfo] = {
    name: SlotInfo(name, base, hook, field, tuple(also))
    for name, base, hook, field, *also in (
        ("model", interfaces.Model, "register_models", "model"),
        ("data", interfaces.DataSource, "register_data_sources", "data"),
        ("prior", interfaces.Prior, "register_priors", "prior"),
        ("freezing", interfaces.FreezingPolicy, "register_freezing_policies", "freezing"),
        ("loss", interfaces.Loss, "register_losses", "loss"),
        ("scheduler", interfaces.Scheduler, "register_schedulers", "scheduler"),
        ("sampler", interfaces.Sampler, "register_samplers", "sampler"),
        ("optimizer", interfaces.Optimizer, "register_optimizers", "optimizer"),
        ("lr_schedule", interfaces.LRSchedule, "register_lr_schedules", "lr_schedule"),
        ("tracker", interfaces.Tracker, "register_trackers", "trackers"),
        ("metric", interfaces.Metric, "register_metrics", "metrics"),
        ("finding", interfaces.FindingRule, "register_findings", "findings"),
        ("exporter", interfaces.Exporter, "register_exporters", "exports"),
        ("callback", interfaces.Callback, "register_callbacks", "callbacks", "early_stop"),
        ("safety", interfaces.SafetyChecker, "register_safety", "safety"),
        ("captioner", interfaces.Captioner, "register_captioners", ""),
        ("masker", interfaces.Masker, "register_maskers", ""),
    )
}


def components(job: AnyJob) -> Iterator[tuple[tuple[str | int, ...], Component]]:
    """Yield every component of a job with its location, those inside of others after them."""
    for field in (name for slot in SLOTS.values() for name in slot.fields):
        at, value = _filling(job, field)
        filled = (
            [((*at, i), item) for i, item in enumerate(value)]
            if isinstance(value, list)
            else [(at, value)]
        )
        for place, component in filled:
            if isinstance(component, Component):  # `exports: auto` is none
                yield place, component
                yield from _inside(place, component)


def _inside(at: tuple[str | int, ...], component: Component) -> Iterator[Any]:
    for name in type(component).model_fields:
        if isinstance(inner := getattr(component, name), Component):
            yield (*at, name), inner
            yield from _inside((*at, name), inner)


def _filling(job: AnyJob, field: str) -> tuple[tuple[str | int, ...], Any]:
    """Return where a slot is filled and with what; the long form of a section is looked into."""
    value: Any = getattr(job, field)
    if short := getattr(value, "short_for", ""):
        return (field, short), getattr(value, short)
    return (field,), value
