"""Which entry of the store a run uses.

The key says *what* an entry is. How it was made (rows at once, threads, device, precision,
versions) moves its last bits: whoever begins an entry records that beside it, and it is finished
in the same way or another one is begun. A run's manifest pins the entries it used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.engine.devices.machine import describe_machine
from dreambooth.files import read_object
from dreambooth.helpers.naming import versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from dreambooth.engine.devices.precision import Precision
    from dreambooth.job import Train

MADE = "made.json"
"""Name of the record in an entry's folder."""
TAKEN_OVER = ("batch", "threads")
"""What a run can do as the record says, whatever its own job says; the rest it has or has not."""


def making(train: Train, precision: Precision) -> dict[str, Any]:
    """Return how this run would make an entry, but for the rows at once."""
    machine = describe_machine(precision.device)
    made = {
        "device": machine["device_name"],
        "precision": precision.name,
        **versions("torch", "diffusers", "transformers"),
    }
    if precision.device.type == "cpu":
        threads = train.threads or torch.get_num_threads()
        return {**made, "threads": threads, "cpu": machine["cpu_capability"]}
    return {**made, "deterministic": train.deterministic, "tf32": train.tf32}


@dataclass(frozen=True)
class Entry:
    """One way in which the content of a key was, or is to be, made."""

    name: str
    """Name in the store: the key's, and the first digits of the record's hash."""
    made: Mapping[str, Any]
    rows: int = 0
    """Rows that are there, of those that were asked for."""


def named(stem: str, made: Mapping[str, Any]) -> str:
    """Return the name of an entry that is made so."""
    text = json.dumps(dict(made), sort_keys=True)
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def can_finish(made: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Say whether a run that makes entries as `now` says can give an entry its missing rows."""
    return all(made.get(k) == now.get(k) for k in {*made, *now} - set(TAKEN_OVER))


def choose(entries: Iterable[Entry], stem: str, now: Mapping[str, Any], count: int) -> Entry:
    """Return the entry to use for `count` rows.

    The one that was made as this run would make it; else one that has all the rows; else the one
    with the most that can be finished as it was begun; else a new one.
    """
    own = Entry(named(stem, now), now)
    entries = sorted(entries, key=lambda e: (-e.rows, e.name))
    for entry in entries:
        if entry.name == own.name:
            return entry
    for entry in entries:
        if entry.rows >= count or can_finish(entry.made, now):
            return entry
    return own


def read_made(folder: Path) -> dict[str, Any] | None:
    """Return an entry's record; None where it cannot be read, so that the entry is left alone."""
    try:
        made = read_object(folder / MADE)
    except (OSError, ValueError):
        return None
    batch = made.get("batch")
    return made if isinstance(batch, int) and batch > 0 else None


def difference(made: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in words how an entry was made otherwise; empty where it was not."""
    keys = [k for k in ("batch", "threads") if made.get(k) != now.get(k)]
    keys += sorted(k for k in {*made, *now} - set(keys) if made.get(k) != now.get(k))
    said = {"batch": "{} rows at once", "threads": "{} threads", "cpu": "CPU capability {}"}
    told = [(said.get(k, k + " {}"), made.get(k, "unknown"), now.get(k, "unknown")) for k in keys]
    return ", ".join(f"{text.format(then)} (here {here})" for text, then, here in told)
