"""Libraries that come with an extra of the distribution, and may be missing."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dreambooth import Problem
from dreambooth.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.component import Location


def missing(library: str, extra: str, at: Location) -> Iterator[Problem]:
    """Report a library that is not installed, without importing it; `at` is what asks for it."""
    spec = find_spec(library)
    # A folder of that name in the working directory (wandb makes one) passes for a package.
    if spec is None or spec.origin is None:
        yield Problem(at, f"{library} is not installed", install(extra))


@contextmanager
def importing(extra: str, slot: str) -> Iterator[None]:
    """Turn a missing library, imported in the block, into a `RunError` with the command."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise RunError(f"{slot}: {error.name} is not installed", install(extra)) from error


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'dreambooth-trainer[{extra}]'"
