"""Libraries kept from talking into a run's log."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers' and transformers' progress bars and advice out of a run's log."""
    from transformers.utils import logging as transformers_logging

    from dreambooth_plugins.common.libraries import diffusers

    libraries = (diffusers.utils.logging, transformers_logging)
    saved = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in libraries]
    try:
        for log, _, _ in saved:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, level, bars in saved:
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()


@contextmanager
def quiet_import(library: str) -> Iterator[None]:
    """Keep what a library logs below an error while it is imported in the block to itself.

    bitsandbytes warns on some CPUs of a kernel for 4-bit weights, which no optimizer needs.
    """
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
