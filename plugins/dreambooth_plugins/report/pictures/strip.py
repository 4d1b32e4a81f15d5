"""Chooses which of a run's pictures a page shows: few enough to be sent, spread over the steps."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dreambooth_plugins.report.document import (
    MAX_PROMPTS,
    MAX_SEEDS,
    MAX_STEPS,
    Row,
    Samples,
)
from dreambooth_plugins.report.inputs import SampleRecord, read_samples
from dreambooth_plugins.report.pictures.thumbs import SIDE, Pool, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from dreambooth_plugins.report.private import Scrub

_SET = re.compile(r"step-(\d{1,12})")
Cell = tuple[str, int, int]
"""Prompt, seed, and which of those with both equal."""


@dataclass
class Sets:
    """The sets of samples a run's folder has."""

    files: dict[int, dict[Cell, Path]] = field(default_factory=dict)
    """Step -> cell -> file."""
    notes: list[str] = field(default_factory=list)

    @property
    def order(self) -> dict[str, list[tuple[int, int]]]:
        """Prompts in the order they were asked, each with its seeds."""
        found: dict[str, dict[tuple[int, int], None]] = {}
        for cells in self.files.values():
            for prompt, seed, nth in cells:
                found.setdefault(prompt, {})[seed, nth] = None
        return {prompt: list(seeds) for prompt, seeds in found.items()}


def read_sets(folder: Path) -> Sets:
    """List a run's sets of samples without opening a picture."""
    sets = Sets()
    for path in sorted((folder / "samples").glob("step-*")):
        if not (step := _SET.fullmatch(path.name)) or path.is_symlink():
            continue
        try:
            rows = read_samples(path)
        except (OSError, ValueError, RecursionError):
            sets.notes.append(f"The pictures of step {int(step[1])} have no list of prompts.")
            continue
        sets.files[int(step[1])] = _cells(path, rows)
    sets.files = dict(sorted(sets.files.items()))
    missing = sum(not f.is_file() for cells in sets.files.values() for f in cells.values())
    if missing:
        total = sum(map(len, sets.files.values()))
        sets.notes.append(
            f"{missing} of {total} sample pictures are no longer in the run's folder."
        )
        there = {
            number: {cell: f for cell, f in cells.items() if f.is_file()}
            for number, cells in sets.files.items()
        }
        sets.files = {number: cells for number, cells in there.items() if cells}
    return sets


def _cells(path: Path, rows: Iterable[SampleRecord]) -> dict[Cell, Path]:
    seen: Counter[tuple[str, int]] = Counter()
    cells = {}
    for row in rows:
        cells[row.prompt, row.seed, seen[row.prompt, row.seed]] = path / row.file
        seen[row.prompt, row.seed] += 1
    return cells


def spread(steps: list[int], limit: int, always: Iterable[int] = ()) -> list[int]:
    """Return at most `limit` of the steps: first, last, those of `always`, the rest evenly."""
    if len(steps) <= limit:
        return steps
    kept = {steps[0], steps[-1]}
    kept |= set([s for s in always if s in steps][: max(0, limit - 2)])
    count = len(steps) - 1
    # Evenly spaced places; one that is taken already leaves its turn to the next finer spacing.
    for parts in range(limit - 1, count + 1):
        for i in range(1, parts):
            if len(kept) >= limit:
                return sorted(kept)
            kept.add(steps[round(i * count / parts)])
    return sorted(kept)


def shown(
    sets: Sets,
    pool: Pool,
    room: int,
    scrub: Scrub,
    key_of: Callable[[str], str],
    always: Iterable[int] = (),
) -> tuple[Samples, list[str]]:
    """Put pictures into the pool, `room` bytes of a page at most, and say what was left out.

    First one picture of every prompt at every chosen step, then the prompts' other pictures.
    Where the first do not fit: fewer steps, then fewer prompts, then smaller pictures.
    """
    order = sets.order
    prompts = list(order)[:MAX_PROMPTS]
    all_steps, start = list(sets.files), pool.size
    made: dict[tuple[Path, int], bytes | None] = {}

    def small(path: Path, side: int) -> bytes | None:
        if (path, side) not in made:
            made[path, side] = thumbnail(path, side)
        return made[path, side]

    def layer(chosen: list[str], steps: list[int], number: int, side: int) -> list[_Found]:
        found = []
        for prompt in chosen:
            if number < len(order[prompt]):
                seed, nth = order[prompt][number]
                files = {s: sets.files[s].get((prompt, seed, nth)) for s in steps}
                data = {s: d for s, f in files.items() if f and (d := small(f, side))}
                found.append(_Found(prompt, seed, number + 1, data))
        return found

    kept, steps = list[_Found](), list[int]()
    for side, columns, lines in _ladder(len(prompts)):
        steps = spread(all_steps, columns, always)
        kept = layer(prompts[:lines], steps, 0, side)
        if _size(kept) <= room - (pool.size - start):
            break
    else:
        kept, steps = [], []
    for number in range(1, MAX_SEEDS) if kept else ():
        more = layer([f.prompt for f in kept if f.number == 1], steps, number, side)
        if _size(kept) + _size(more) > room:
            break
        kept += more
    rows = [_row(found, pool, scrub, key_of) for found in sorted(kept, key=_place(prompts))]
    rows = [row for row in rows if row.pictures]
    steps = [step for step in steps if any(step in row.pictures for row in rows)]
    return Samples(steps, rows, len(order)), _left_out(sets, steps, rows, order)


@dataclass(frozen=True)
class _Found:
    prompt: str
    seed: int
    number: int
    data: dict[int, bytes]


def _ladder(prompts: int) -> Iterable[tuple[int, int, int]]:
    """Yield (side, steps, prompts) from the most there may be to the least worth showing."""
    for side in (SIDE, 384, 256, 128):
        for steps in (MAX_STEPS, 5, 3):
            yield side, steps, prompts
        for lines in (8, 4):
            if lines < prompts:
                yield side, 3, lines


def _size(found: list[_Found]) -> int:
    return sum(4 * ((len(d) + 2) // 3) + 12 for f in found for d in f.data.values())


def _place(prompts: list[str]) -> Callable[[_Found], tuple[int, int]]:
    return lambda found: (prompts.index(found.prompt), found.number)


def _row(found: _Found, pool: Pool, scrub: Scrub, key_of: Callable[[str], str]) -> Row:
    pictures = {step: pool.add(data) for step, data in found.data.items()}
    prompt, key = scrub.words(found.prompt), key_of(found.prompt)
    return Row(prompt, key, found.seed, found.number, pictures)


def _left_out(
    sets: Sets, steps: list[int], rows: list[Row], order: dict[str, list[tuple[int, int]]]
) -> list[str]:
    total = sum(map(len, sets.files.values()))
    left = total - sum(len(row.pictures) for row in rows)
    if left <= 0:
        return []
    prompts = len({row.prompt for row in rows})
    return [
        f"{left} of {total} sample pictures are not on this page: it shows {len(steps)} of "
        f"{len(sets.files)} sets and {prompts} of {len(order)} prompts. All of them are in the "
        "run's folder, below samples."
    ]
