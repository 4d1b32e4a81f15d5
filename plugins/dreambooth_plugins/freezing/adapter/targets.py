"""Which modules get an adapter: presets and globs, on the module names of a part."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from dreambooth.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Preset = Literal["attention", "attention+mlp", "cross_attention", "authors", "all_linear", "conv"]
BY_TYPE: Mapping[str, str] = {"all_linear": "linear", "conv": "conv"}
"""Presets that take every layer of a type; the others are names that the model gives."""


def matches(pattern: str, part: str, module: str) -> bool:
    """Say whether a glob names a module: its whole name, an end of it, or `part.name`.

    `*` stands for any text, dots included: `to_q`, `attn2.to_*`, `down_blocks.0.*`,
    `unet.mid_block.*`.
    """
    names = (module, f"{part}.{module}")
    return any(fnmatchcase(n, pattern) or fnmatchcase(n, f"*.{pattern}") for n in names)


def find(
    targets: Sequence[str],
    presets: Mapping[str, Sequence[str]],
    part: str,
    modules: Mapping[str, str],
) -> dict[str, list[str]]:
    """Return target -> the modules of `part` it names, in the model's order.

    `modules` maps names to `linear` or `conv`. A preset the part does not have is `JobError`; a
    glob may name nothing here and something in another part.
    """
    found: dict[str, list[str]] = {}
    for target in targets:
        if target in BY_TYPE:
            found[target] = [m for m, kind in modules.items() if kind == BY_TYPE[target]]
        elif target in presets:
            globs = presets[target]
            found[target] = [m for m in modules if any(matches(g, part, m) for g in globs)]
        elif target in ("attention", "attention+mlp", "cross_attention", "authors"):
            raise JobError(f"freezing.targets: {part} has no {target}", choices(part, presets))
        else:
            found[target] = [m for m in modules if matches(target, part, m)]
    return found


def choices(part: str, presets: Mapping[str, Sequence[str]]) -> str:
    """Name the presets a part has."""
    return f"presets of {part}: {', '.join([*presets, *BY_TYPE])}"


def nothing(option: str, pattern: str, names: Iterable[str]) -> JobError:
    """Return the error of a glob that matches nothing, with the names nearest to it."""
    known: dict[str, str] = {}
    for name in names:
        pieces = name.split(".")
        for i in range(len(pieces)):
            known.setdefault(".".join(pieces[i:]), name)
    wanted = pattern.strip("*.") or pattern
    near = get_close_matches(wanted, known, n=3, cutoff=0.5)
    some = [known[n] for n in near] or list(known.values())[:3]
    return JobError(
        f'freezing.{option}: "{pattern}" matches nothing in this model',
        f"did you mean {' or '.join(dict.fromkeys(near))}? e.g. {some[0]}"
        if near
        else f"names look like {', '.join(dict.fromkeys(some))}",
    )
