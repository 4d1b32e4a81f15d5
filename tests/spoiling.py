"""Spoiling good data at random: what the fuzz tests of jobs, manifests and checkpoints share."""

from __future__ import annotations

import functools
import math
import re
import traceback
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = [
    "", " ", ".", "a" * 300, "a/" * 3000, "~", "~nobody-of-this-name/x", "../..", "/dev/null",
    "/dev/zero",
    "\U0001f600", "\u202e", "\x85", "\u2028", "\ufeff", "a\nb", "builtin:", "builtin:../x",
    "builtin:sd15", "http://x/y", "a/b", "a/b..c", "a/--b", "a/b.git", "x.safetensors", "x.ckpt",
    "cuda:99", "cuda:-1", "meta", "os.system", "${HOME}", "$(true)", "x" * 70 + "/" + "y" * 70,
]  # fmt: skip
"""Texts that the system, the hub or a shell would take for something."""
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**60, 1e308, -0.0, 5e-324, 1.5,
    math.inf, -math.inf, math.nan, "none", "auto", "{identifier}", "{oops}", [], {}, [1], [[]],
    [None], {"a": 1}, {"kind": "none"}, {"kind": 1}, {"kind": []}, {"kind": "adamw", "lr": {}},
    [64, 64], [64], [64, 64, 64], "null", "1e-4", "0x1F", "0o7", "yes", "1_000", ".nan", "::",
    "- a", "#", "'", '"', "%", "@x", "`", "*", "&a", "!!str", "<<", "\\", "a\nb: c", "\t", *NAMES,
]  # fmt: skip
odd = st.one_of(st.sampled_from(ODD), st.integers(), st.floats(), st.text(max_size=12))
where = st.integers(0, 10**6)
Edit = tuple[str, int, Any, int]
edit = st.tuples(
    st.sampled_from(["drop", "put", "rename", "nest", "listed", "copy", "text"]), where, odd, where
)
edits = st.lists(edit, min_size=1, max_size=3)


def places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the location of every key and item."""
    inside = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in inside:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def spoil(data: dict[str, Any], edits: list[Edit]) -> dict[str, Any]:
    """Return a copy with some places changed."""
    data = deepcopy(data)
    for how, number, value, other in edits:
        found = list(places(data))
        if not found:
            break
        *above, key = found[number % len(found)]
        source: Any = data
        for step in found[other % len(found)]:
            source = source[step]
        container: Any = data
        for step in above:
            container = container[step]
        changed = {
            "put": deepcopy(value),  # a later edit may be inside it
            "nest": {"kind" if other % 2 else str(key): container[key]},
            "listed": [container[key]],
            "copy": deepcopy(source),
            "text": str(container[key]),
        }
        if how in changed:
            container[key] = changed[how]
        elif how == "drop" or not isinstance(container, dict):
            del container[key]
        else:
            container[str(value)] = container.pop(key)
    return data


def fuzz(examples: int, *strategies: Any, check: Callable[..., None]) -> None:
    """Call `check` with drawn values: the same ones on every run of the usual tests.

    The thousands of the slow tests go on after a fault, and tell one of each kind at the end.
    """
    many = examples >= 1000
    faults: dict[str, Exception] = {}

    @functools.wraps(check)
    def checked(*args: Any, **drawn: Any) -> None:
        try:
            check(*args, **drawn)
        except Exception as error:
            if not many:
                raise
            if (kind := _kind(error)) not in faults:
                error.add_note(f"drawn: {args!r} {drawn!r}")
                faults[kind] = error.with_traceback(None)

    settled = settings(
        deadline=None, max_examples=examples, derandomize=not many, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    settled(given(*strategies)(checked))()
    if faults:
        raise ExceptionGroup(f"{len(faults)} kinds of fault", list(faults.values()))


def _kind(error: Exception) -> str:
    """Return what is the same in faults of one kind: where it was found, and its words."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{last.filename}:{last.lineno} {re.sub(r'[^a-z]+', ' ', str(error).lower())[:200]}"
