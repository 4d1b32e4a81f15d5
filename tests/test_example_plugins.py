"""The example packages do what they say: their own tests, as their authors would run them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dreambooth.plugins import registry_with

EXAMPLES = Path(__file__).parents[1] / "plugins" / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/pyproject.toml"))


def project(name):
    return tomllib.loads((EXAMPLES / name / "pyproject.toml").read_text())["project"]


@pytest.fixture
def plugins(monkeypatch):
    """Return the modules that the packages' entry points name."""
    targets = []
    for name in NAMES:
        monkeypatch.syspath_prepend(EXAMPLES / name / "src")
        targets += project(name)["entry-points"]["dreambooth"].values()
    yield [importlib.import_module(target) for target in targets]
    for target in targets:
        del sys.modules[target]


def test_there_are_three_and_the_guide_names_them():
    assert len(NAMES) == 3
    guide = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"examples/{name}" in guide for name in NAMES)


def test_one_run_uses_two_of_them(plugins, trainer):
    with registry_with(*plugins) as registry:
        assert "remote_pictures" in registry.kinds("data")
        ran = trainer.run(
            freezing="norms_and_biases",
            sampler={"kind": "decaying_guidance", "steps": 3},
            samples={"every": 2},
            prior="none",
            train={"steps": 2},
        )
    assert all(n.endswith((".bias", ".weight")) for n in ran.weights())
    assert all(p.dim() == 1 for p in ran.weights().values())
    assert any(name.startswith("samples/") for name in ran.files)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_own_tests_pass(name):
    if name == "remote_pictures":
        pytest.importorskip("aiohttp")
    env = {**os.environ, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=EXAMPLES / name, env=env, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
