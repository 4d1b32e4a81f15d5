"""Packages written against 0.1.0 go on working: what minor versions add, they do without.

They are as an author left them; whoever has to touch them has broken the promise of
plugins/README.md, "Versions".
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import tomllib
from pathlib import Path

import pytest

from dreambooth import LRSchedule, Sampler
from dreambooth.component.door import ADDED, without
from dreambooth.interfaces import LoadedModel, NoiseSchedule
from dreambooth.plugins import registry_with

FROZEN = Path(__file__).parent / "data" / "plugins"
DIGESTS = {
    "frozen-loss": "b3ef1425d1433f2a",
    "frozen-policy": "c4c7cc79d3c53d8d",
    "frozen-sampler": "cb485a5de2ab5e62",
}


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.suffix in {".py", ".toml"})
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in files)).hexdigest()[:16]


@pytest.fixture
def frozen(monkeypatch):
    """Return the modules that the packages' entry points name."""
    modules = []
    for folder in (FROZEN / name for name in DIGESTS):
        monkeypatch.syspath_prepend(folder)
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        [target] = project["entry-points"]["dreambooth"].values()
        modules.append(importlib.import_module(target))
    yield modules
    for module in modules:
        del sys.modules[module.__name__]


@pytest.mark.parametrize("name", DIGESTS)
def test_they_are_as_their_authors_left_them(name):
    assert digest(FROZEN / name) == DIGESTS[name]


def test_they_load_train_and_draw(frozen, trainer):
    with registry_with(*frozen) as registry:
        assert "cross_attention_only" in registry.kinds("freezing")
        ran = trainer.run(
            freezing="cross_attention_only",
            loss={"kind": "log_cosh", "prior_weight": 0.5},
            lr_schedule="stepped",
            sampler={"kind": "unguided", "steps": 2},
            samples={"every": 4},
        )
    assert len(ran.losses) == 4
    assert all(".attn2." in name for name in ran.weights())
    rates = [value for _, value in ran.result.history["train/lr"]]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-4, 1e-4])
    assert any(name.startswith("samples/") for name in ran.files)


def test_they_are_planned_too(frozen, trainer):
    from dreambooth import plan

    with registry_with(*frozen):
        job = trainer.job(freezing="cross_attention_only", sampler="unguided")
        assert sum(part.trainable for part in plan(job).parts) > 0


def test_an_argument_that_came_later_is_given_to_those_who_know_it():
    def old(self, step, steps):
        return (step, steps)

    def new(self, step, steps, start=0):
        return (step, steps, start)

    def any_of_them(self, step, steps, **more):
        return (step, steps, more)

    assert without(old, ("start",))(None, 1, 2, 3) == (1, 2)
    assert without(old, ("start",))(None, 1, steps=2, start=3) == (1, 2)
    assert without(old, ("start",))(None, 1, 2) == (1, 2)
    assert without(new, ("start",)) is new
    assert without(any_of_them, ("start",)) is any_of_them
    came_later = {LRSchedule.at, Sampler.forwards, NoiseSchedule.timestep_quantiles}
    assert set(ADDED) == {*came_later, LoadedModel.condition}
