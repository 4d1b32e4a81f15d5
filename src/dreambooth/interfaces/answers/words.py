"""How answers of plugins are checked: what is wanted, and the words for what is not.

A check is called like the method, after its answer, and says what is wrong, or nothing. It runs at
every call, so it looks at types and shapes, which cost nothing, and at values only where they are
few, or on the CPU anyway. Whether a step's tensors are finite is looked at once, by the engine.
"""

from __future__ import annotations

import math
import sys
from numbers import Real
from typing import TYPE_CHECKING, Any

from dreambooth.component.door import ANSWERS

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = Any


def of(*methods: Any) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Make a function the check of methods, named as the interface declares them."""

    def register(check: Callable[..., str]) -> Callable[..., str]:
        for method in methods:
            ANSWERS[method] = check
        return check

    return register


def shown(value: Any) -> str:
    """Return a value in a few words: its type, and of arrays what they measure."""
    name = type(value).__name__
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{name} {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    text = repr(value)
    return text if len(text) <= 60 else f"{name} {text[:50]}..."


def wants(answer: Answer, what: str) -> str:
    """Say that something else was returned than is wanted."""
    return f"returned {shown(answer)} where {what} is wanted"


def is_tensor(value: Any, *shape: int) -> bool:
    """Say whether a value is a tensor, of this shape where one is given."""
    torch = sys.modules.get("torch")
    found = torch is not None and isinstance(value, torch.Tensor)
    return found and (not shape or tuple(value.shape) == shape)


def is_number(value: Any) -> bool:
    """Say whether a value is a finite number."""
    return isinstance(value, (float, int, Real)) and math.isfinite(value)


def plain(kind: Any, what: str, *methods: Any) -> None:
    """Let methods return instances of a type, or of one of several."""

    @of(*methods)
    def check(answer: Answer, *_: Any, **__: Any) -> str:
        return "" if isinstance(answer, kind) else wants(answer, what)


def listed(kind: type, what: str, *methods: Any) -> None:
    """Let methods return lists of a type."""

    @of(*methods)
    def check(answer: Answer, *_: Any, **__: Any) -> str:
        if not isinstance(answer, list):
            return wants(answer, f"a list of {what}")
        odd = [item for item in answer if not isinstance(item, kind)]
        return f"returned a list with {shown(odd[0])} where {what} are wanted" if odd else ""
