"""diffusers and PEFT without bitsandbytes, which they import where it is installed: from here."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dreambooth_plugins.common.deferred import deferred, unseen

with deferred("bitsandbytes"):
    import diffusers
    import diffusers.quantizers  # with what loads and saves any model class
    import peft
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available
    from peft.tuners.tuners_utils import BaseTunerLayer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BaseTunerLayer", "diffusers", "peft", "unquantized"]


@contextmanager
def unquantized() -> Iterator[None]:
    """Keep PEFT from looking for quantized layers in the block, where it puts adapters in."""
    answers = (is_bnb_available, is_bnb_4bit_available)
    for answer in answers:
        answer.cache_clear()
    try:
        with unseen("bitsandbytes"):
            yield
    finally:
        for answer in answers:  # whoever loads a quantized model in this process asks anew
            answer.cache_clear()
