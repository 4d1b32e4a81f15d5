"""pytest fixtures: `pytest_plugins = ["dreambooth.testing.fixtures"]` in a `conftest.py`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from dreambooth.testing.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dreambooth.plugins import Registry


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """Return a trainer in miniature, with pictures and runs below the test's own folder."""
    return Trainer(tmp_path)


@pytest.fixture
def plugged() -> Iterator[Callable[..., Registry]]:
    """Add plugins for the length of a test: `plugged(my_package.plugin)` returns the registry."""
    from dreambooth.plugins import registry_with

    with ExitStack() as stack:

        def add(*plugins: Any) -> Registry:
            return stack.enter_context(registry_with(*plugins))

        yield add
