"""`dbt --trace` says which component answered what, the first time, and how long all took."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, Literal

import pytest

from dreambooth import LRSchedule
from dreambooth.component import door
from dreambooth.plugins.tracing import Calls

if TYPE_CHECKING:
    from pathlib import Path


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


def test_dbt_trace_says_who_was_asked_what(tmp_path: Path, small_job: Any) -> None:
    """In a process of its own: it asks Python to say the totals when it ends."""
    from dreambooth.jobs.loading import dump_job

    (tmp_path / "job.yaml").write_text(dump_job(small_job()))
    said = subprocess.run(
        [sys.executable, "-m", "dreambooth", "--trace", "validate", "job.yaml"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "job.yaml: ok" in said.stdout
    lines = [line for line in said.stderr.splitlines() if line.startswith("dreambooth plugins: ")]
    assert any('"default-loss"' in line and "imported in" in line for line in lines)
    assert any("register_losses() took" in line for line in lines)
    name = 'dreambooth_plugins.data.folder.Folder "folder"'
    [first] = [line for line in lines if f"{name} check() -> " in line]
    assert first.endswith(" ms")
    assert any(f"1 calls of {name} check()" in line for line in lines)
