"""`dbt --trace` says which component answered what, the first time, and how long all took."""

from __future__ import annotations

from typing import Literal

import pytest

from dreambooth import LRSchedule
from dreambooth.component import door
from dreambooth.plugins.tracing import Calls


class Halving(LRSchedule):
    kind: Literal["halving"] = "halving"

    def factor(self, step: int, steps: int) -> float:
        return 0.5**step


def test_the_first_call_is_shown_and_all_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls()
    monkeypatch.setattr(door._Told, "calls", calls.heard)
    schedule = Halving()
    for step in range(3):
        schedule.factor(step + 1, 9)
    [line] = capsys.readouterr().err.splitlines()
    name = f'{__name__}.Halving "halving"'
    assert line.startswith(f"dreambooth plugins: {name} factor() -> 0.5 in ")
    [total] = calls.lines()
    assert total.endswith(f"s in      3 calls of {name} factor()")
    monkeypatch.undo()
    schedule.factor(1, 9)
    assert calls.lines() == [total]
