"""Libraries that come with an extra of the distribution, and may be missing."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dreambooth import Problem
from dreambooth.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator


def missing(library: str, extra: str) -> Iterator[Problem]:
    """Report an optimizer's library that is not installed, without importing it."""
    spec = find_spec(library)
    # A folder of that name in the working directory passes for a package.
    if spec is None or spec.origin is None:
        yield Problem(("optimizer", "kind"), f"{library} is not installed", install(extra))


@contextmanager
def importing(extra: str) -> Iterator[None]:
    """Turn a missing library, imported in the block, into a `RunError` with the command."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise RunError(f"optimizer: {error.name} is not installed", install(extra)) from error


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep what a library logs below an error while it is imported in the block to itself.

    bitsandbytes warns on some CPUs of a kernel for 4-bit weights, which no optimizer needs.
    """
    import logging

    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'dreambooth-trainer[{extra}]'"
