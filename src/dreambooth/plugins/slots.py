"""Slots: fields of a job that any installed component of the right base can fill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter

from dreambooth import interfaces
from dreambooth.component import Component
from dreambooth.component.tagged import Tagged

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class SlotInfo:
    """A slot's base class and the hook that fills it."""

    name: str
    base: type[Component]
    hook: str
    field: str
    """Where in a job the slot is filled."""
    also: tuple[str, ...] = ()
    """Further fields that take the same kinds."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field of a job that takes the slot's kinds."""
        return (self.field, *self.also)


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
        ("exporter", interfaces.Exporter, "register_exporters", "exports"),
        ("callback", interfaces.Callback, "register_callbacks", "callbacks", "early_stop"),
    )
}


class Slot(Tagged):
    """Annotation of a job field: `Annotated[Loss, Slot("loss")]`.

    Takes `{kind: name, ...}`, the bare name, or an instance of the slot's base (registered or
    not). The kinds are looked up when a job is validated, so plugins may be loaded late.
    """

    def __init__(self, name: str) -> None:
        self.info = SLOTS[name]
        self.name, self.base = name, self.info.base

    def kinds(self) -> Mapping[str, type[Component]]:
        """Return the installed kinds."""
        from dreambooth.plugins import registry

        return registry().kinds(self.name)

    def why_missing(self, kind: str) -> str:
        """Say which broken or colliding plugin would have brought a kind."""
        from dreambooth.plugins import registry

        return registry().why_missing(self.name, kind)


def component(slot: str, kind: str) -> Any:
    """Return the component of `kind` with its default options."""
    adapter: TypeAdapter[Component] = TypeAdapter(Annotated[Component, Slot(slot)])
    return adapter.validate_python(kind)
