"""Kinds of values in a stranger's JSON: a test each, and how a person would say it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Kind:
    """What a value must be: a test, and how a person would say it."""

    words: str
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
    """Return whole numbers from `low` to `high`."""
    return Kind(
        f"a whole number from {low} to {high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def real(low: float, high: float, *, between: bool = False) -> Kind:
    """Return numbers from `low` to `high`, these themselves left out with `between`."""

    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not -1e300 < value < 1e300 or not math.isfinite(value):
            return False
        return low < value < high if between else low <= value <= high

    return Kind(f"a number {'between' if between else 'from'} {low:g} and {high:g}", fits)


def one_of(*known: str) -> Kind:
    """Return some texts."""
    return Kind(f"one of {', '.join(known)}", lambda v: isinstance(v, str) and v in known)


def none_or(kind: Kind) -> Kind:
    """Return a kind, and null."""
    return Kind(f"{kind.words}, or null", lambda v: v is None or kind.fits(v))


def many(kind: Kind, most: int) -> Kind:
    """Return lists of one to `most` of a kind."""
    return Kind(
        f"a list of 1 to {most}, each {kind.words}",
        lambda v: isinstance(v, list) and 0 < len(v) <= most and all(map(kind.fits, v)),
    )


def either(*kinds: Kind) -> Kind:
    """Return all that is of one of the kinds."""
    return Kind(
        " or ".join(kind.words for kind in kinds), lambda v: any(kind.fits(v) for kind in kinds)
    )


FLAG = Kind("true or false", lambda v: isinstance(v, bool))
NULL = Kind("null: this kind of model has none", lambda v: v is None)
TEXT = Kind("a text", lambda v: isinstance(v, str))
NO = Kind("false: this kind of model has none", lambda v: v is None or v is False)
