"""Checkpoints: written beside and renamed, checksummed, verified on load, rotated afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dreambooth.errors import RunError
from dreambooth.files import new_folder, read_object, remove, write_json
from dreambooth.process import raise_stopped
from dreambooth.runs.checkpoints import (
    CHECKSUMS,
    STATE,
    Damaged,
    file_hash,
    list_checkpoints,
    name_of,
    passed_over,
    read_sums,
    reason,
    verify_all,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

PIECE = 256 * 2**20
"""Bytes that are copied out of a tensor file before it is opened anew."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a checkpoint."""

    folder: Path
    tensors: dict[str, dict[str, Tensor]]
    numbers: dict[str, Any]


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    numbers: Mapping[str, Any],
    rotate: Callable[[list[int]], Iterable[int]],
) -> Path:
    """Write the checkpoint of `step`, and when it is whole delete those `rotate` gives away.

    `rotate` gets the steps that are on disk (see `rotation.superseded`). Where the same checkpoint
    is there already it stays: replacing it would only bring a moment without any.
    """
    dest = folder / name_of(step)
    try:
        with new_folder(dest, partial(holds_the_same, dest)) as beside:
            for stem, named in tensors.items():
                save_file(apart(named), beside / f"{stem}.safetensors")
            write_json(beside / STATE, numbers)
            sums = {f.name: file_hash(f) for f in sorted(beside.iterdir())}
            write_json(beside / CHECKSUMS, sums)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
        raise RunError(
            f"cannot write checkpoint {dest}: {reason(error)}",
            "the checkpoint before is intact: make room and run the same command again",
        ) from error
    there = dict(list_checkpoints(folder))
    for old in rotate(list(there)):
        remove(there[old])
    return dest


def holds_the_same(folder: Path, other: Path) -> bool:
    """Say whether a checkpoint is whole and equal to another one in every file."""
    try:
        return read_sums(other) == verify_all(folder)
    except (Damaged, OSError, ValueError):
        return False


def apart(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, each with memory of its own: safetensors wants them so.

    An 8-bit optimizer's parameters share one table of what the codes stand for.
    """
    taken: set[int] = set()
    whole = {}
    for name, tensor in named.items():
        found = tensor.contiguous().cpu()
        place = found.untyped_storage().data_ptr()
        whole[name] = found.clone() if place in taken else found
        taken.add(place)
    return whole


def load(folder: Path, stems: Collection[str] | None = None) -> Checkpoint:
    """Read and verify one checkpoint; `Damaged` says what is wrong with it.

    `stems` names the tensor files to read (`trainable`, `ema`, `optimizer`), by default all.
    """
    sums = verify_all(folder)
    try:
        tensors = {
            name.removesuffix(".safetensors"): read_tensors(folder / name)
            for name in sums
            if name.endswith(".safetensors")
            and (stems is None or name.removesuffix(".safetensors") in stems)
        }
        return Checkpoint(folder, tensors, read_object(folder / STATE))
    except (OSError, ValueError, SafetensorError) as error:
        raise Damaged(f"it cannot be read: {reason(error)}") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a tensor file into memory of its own.

    safetensors maps the file, and an optimizer's state would stay that map for the rest of the
    run: of a file that rotation deletes, and whose blocks the disk then keeps. Closing the file
    now and then keeps little of it in memory beside the copies.
    """
    with safe_open(file, "pt") as opened:
        names = list(opened.keys())
    found: dict[str, Tensor] = {}
    while len(found) < len(names):
        copied = 0
        with safe_open(file, "pt") as opened:
            for name in names[len(found) :]:
                found[name] = opened.get_tensor(name).clone()
                copied += found[name].nbytes
                if copied >= PIECE:
                    break
    return found


def newest(folder: Path, warn: Any) -> Checkpoint | None:
    """Return the newest whole checkpoint, naming each damaged one that was passed over.

    Passed over, it is a step that never was: a run that goes on from the one before cuts its
    metrics back. So a stop that came while it was read must not be taken for damage.
    """
    found: list[Path | None] = [path for _, path in reversed(list_checkpoints(folder))]
    for path, before in pairwise([*found, None]):
        assert path is not None
        try:
            return load(path)
        except Damaged as error:
            raise_stopped()
            warn(passed_over(path, error, before))
    return None
