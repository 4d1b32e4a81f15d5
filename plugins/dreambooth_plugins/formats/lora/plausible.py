"""What a stranger's LoRA file may hold: shapes that make an update, scales that are numbers.

Everything here is known from the file's header, so `dbt validate` says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.files.headers import read_number
from dreambooth.helpers.text import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreambooth.files.headers import Header

DAMAGED = "the file is damaged, or no LoRA: download it again"
MAX_RANK, MAX_ALPHA = 4096, 1e6
"""The highest rank is that of the option `rank`."""


def check_pair(file: Path, header: Header, where: str, roles: Mapping[str, str]) -> None:
    """Raise `JobError` unless a module's tensors are the two factors of an update.

    down [rank, in] or [rank, in, k, k], up [out, rank] or [out, rank, k, k], floating-point.
    """
    for role in ("down", "up", "magnitude"):
        if role in roles and not header.floating(roles[role]):
            kind = header.dtypes[roles[role]]
            raise JobError(f"{file}: {where} holds {kind}, not floating-point numbers", DAMAGED)
    down, up = header.shapes[roles["down"]], header.shapes[roles["up"]]
    if len(down) not in (2, 4) or len(up) not in (2, 4) or 0 in (*down[1:], up[0], *up[2:]):
        raise JobError(
            f"{file}: {where} has {list(up)} and {list(down)}, which no layer takes", DAMAGED
        )
    if down[0] != up[1]:
        raise JobError(f"{file}: {where} has the ranks {down[0]} and {up[1]}", DAMAGED)
    if not 1 <= down[0] <= MAX_RANK:
        raise JobError(
            f"{file}: {where} has rank {down[0]}", f"ranks from 1 to {MAX_RANK} can be taken over"
        )


def alpha_of(file: Path, header: Header, where: str, name: str) -> float:
    """Return the alpha a file has for a module; `JobError` where it is not one usable number."""
    try:
        value = read_number(file, header, name)
    except (OSError, ValueError) as error:
        raise JobError(f"{file}: the alpha of {where}: {error}", DAMAGED) from error
    return checked_alpha(f"{file}: the alpha of {where}", value)


def checked_alpha(what: str, value: Any) -> float:
    """Return an alpha as it is; `JobError` where no update can be scaled by it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0.0 < value <= MAX_ALPHA:  # NaN is in no interval
        raise JobError(
            f"{what} is {quoted(value)}", f"it must be above 0 and {MAX_ALPHA:g} at most"
        )
    return float(value)
