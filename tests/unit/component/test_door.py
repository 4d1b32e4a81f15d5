"""The door: what goes through it, what it holds to the contract, and who is said to be at fault."""

from __future__ import annotations

import sys
from typing import Literal

import pytest

from dreambooth import FreezingPolicy, Loss, LRSchedule, hookimpl
from dreambooth.component.door import ANSWERS, DOOR, WrongAnswer, declared_methods
from dreambooth.interfaces import (
    LoadedModel,
    NoiseSchedule,
    Observer,
    PriorSet,
    TrackerWriter,
    Vocabulary,
)
from dreambooth.plugins import registry, registry_with
from dreambooth.plugins.faults import plugin_fault
from dreambooth.plugins.slots import SLOTS


def behind(cls, name):
    return getattr(getattr(cls, name), "__code__", None) is DOOR


def test_every_method_of_every_installed_kind_is_behind_the_door():
    for slot in SLOTS.values():
        required = declared_methods(slot.base)
        for cls in registry().kinds(slot.name).values():
            own = [n for n in required if getattr(cls, n) is not getattr(slot.base, n)]
            assert own
            assert all(behind(cls, n) for n in own), cls


ANSWER_NOTHING = {
    "check",  # a generator: `checks` looks at what it yields
    "prepare", "after_step", "write", "release", "save", "enable_gradient_checkpointing",
    "load_state", "scalars", "images", "text", "histogram", "flush", "close",
    "pipeline", "named_parameters", "answer", "draw",  # asked by plugins and tests alone
}  # fmt: skip


def test_every_method_of_the_interfaces_says_what_it_must_answer():
    opened = (LoadedModel, PriorSet, NoiseSchedule, TrackerWriter, Observer, Vocabulary)
    for base in (*(slot.base for slot in SLOTS.values()), *opened):
        for name, declared in declared_methods(base).items():
            known = any(method in ANSWERS for method in declared)
            assert known or name in ANSWER_NOTHING, name


def test_what_interfaces_bring_themselves_is_not():
    assert not behind(LRSchedule, "at")
    assert not behind(Loss, "rows")
    assert not behind(Observer, "state")


class Mixin:
    def trainable(self, model):
        return None


class Policy(Mixin, FreezingPolicy):
    kind: Literal["mixed"] = "mixed"


class Child(Policy):
    kind: Literal["child"] = "child"  # type: ignore[assignment]

    def trainable(self, model):
        return super().trainable(model) or {}


def test_methods_of_a_mixin_are_held_to_the_contract_too():
    assert behind(Policy, "trainable")
    with pytest.raises(WrongAnswer, match="returned None where a mapping"):
        Policy().trainable(None)
    with pytest.raises(WrongAnswer):  # what a parent answers is an answer
        Child().trainable(None)


class Broken(LRSchedule):
    kind: Literal["broken_rate"] = "broken_rate"

    def factor(self, step, steps):
        if step:
            sys.exit("bye")
        return helped(step)


def helped(step):
    return 1 / step


class Plugin:
    @hookimpl
    def register_lr_schedules(self):
        return [Broken]


def fault_of(call):
    try:
        call()
    except BaseException as error:
        return plugin_fault(error)
    raise AssertionError


def test_exceptions_pass_unchanged_and_their_traceback_says_whose_they_are():
    with pytest.raises(ZeroDivisionError):
        Broken().at(0, 1)
    line = helped.__code__.co_firstlineno + 1
    with registry_with(Plugin()):
        found = fault_of(lambda: Broken().at(0, 1))
        left = fault_of(lambda: Broken().at(1, 1))
    start = 'plugin "Plugin" (registered here), lr_schedule "broken_rate", factor() '
    said = "ZeroDivisionError: division by zero"
    assert found.message == f"{start}(test_door.py:{line}): {said}"
    assert left.message.startswith(start)
    assert left.message.endswith("asked the program to end (exit code 'bye')")
    assert found.exit_code == 3


def test_interrupts_and_memory_are_no_plugins_fault():
    class Stops(Broken):
        def factor(self, step, steps):
            raise [KeyboardInterrupt, MemoryError][step]

    assert fault_of(lambda: Stops().factor(0, 1)) is None
    assert fault_of(lambda: Stops().factor(1, 1)) is None
