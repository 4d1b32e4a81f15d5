"""Tests that need a card: `make test-gpu`. All are marked `gpu`, and skipped without one.

`DREAMBOOTH_CARD=cpu` runs what can be run without, to try the tests themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def card() -> str:
    """The device under test, as a job names it."""
    import torch

    name = os.environ.get("DREAMBOOTH_CARD", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no card")
    return name


@pytest.fixture
def only_cuda(card):
    """Skip what a CPU cannot stand in for."""
    if card != "cuda":
        pytest.skip("a card itself is needed")


@pytest.fixture
def on_card(small_job, card):
    """Make a job on the card: `on_card(precision="bf16", freezing="adapter")`."""

    def make(precision="fp32", train=None, **sections):
        train = {"device": card, "precision": precision, **(train or {})}
        return small_job(train=train, **sections)

    return make


@pytest.fixture
def emoji():
    """Sections of a job on the embedded base, at its own size."""
    return {"model": {"source": "builtin:emoji-64"}, "data": {"resolution": 64}}
