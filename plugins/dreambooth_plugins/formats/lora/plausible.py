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
    for role in ("down", "up", "mid", "magnitude"):
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
    if "mid" in roles and (
        len(mid := header.shapes[roles["mid"]]) != 4 or mid[:2] != (down[0],) * 2 or 0 in mid[2:]
    ):
        raise JobError(f"{file}: {where} has {list(mid)} between its factors", DAMAGED)
    if not 1 <= down[0] <= MAX_RANK:
        raise JobError(
            f"{file}: {where} has rank {down[0]}", f"ranks from 1 to {MAX_RANK} can be taken over"
        )


def check_factors(file: Path, header: Header, where: str, roles: Mapping[str, str]) -> None:
    """Raise `JobError` unless a module's tensors are all the factors of a LoHa or a LoKr."""
    names = {role for role in roles if role.startswith(("hada_", "lokr_"))}
    shapes = {role: header.shapes[roles[role]] for role in names}
    for role, shape in shapes.items():
        if not header.floating(roles[role]):
            kind = header.dtypes[roles[role]]
            raise JobError(f"{file}: {where} holds {kind}, not floating-point numbers", DAMAGED)
        if len(shape) not in (2, 4) or 0 in shape or shape[0] > 1 << 20:
            raise JobError(f"{file}: {where} has {role} {list(shape)}, no factor", DAMAGED)
    whole = [f"hada_w{i}_{side}" for i in (1, 2) for side in "ab"]
    if names <= {*whole, "hada_t1", "hada_t2"}:
        complete = names >= {*whole} and len(names) != 5
        pairs = [("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")]
    else:
        left = names & {"lokr_w1", "lokr_w1_a", "lokr_w1_b"}
        right = names & {"lokr_w2", "lokr_w2_a", "lokr_w2_b"}
        complete = not any(n.startswith("hada_") for n in names) and all(
            side in ({f"lokr_w{i}"}, {f"lokr_w{i}_a", f"lokr_w{i}_b"})
            for i, side in ((1, left), (2, right))
        )
        pairs = [(f"lokr_w{i}_a", f"lokr_w{i}_b") for i in (1, 2) if f"lokr_w{i}_a" in names]
    if not complete:
        raise JobError(f"{file}: {where} has {', '.join(sorted(names))}: factors lack", DAMAGED)
    ranks = {shapes[b][0] for _, b in pairs}
    core = {"hada_w1_a": "hada_t1", "hada_w2_a": "hada_t2", "lokr_w2_a": "lokr_t2"}
    for a, _ in pairs:  # with a core both factors begin with the rank
        ranks.add(shapes[a][0] if core.get(a) in names else shapes[a][1])
    ranks |= {side for t in names & {*core.values()} for side in shapes[t][:2]}
    if len(ranks) > 1 or not all(1 <= rank <= MAX_RANK for rank in ranks):
        raise JobError(f"{file}: {where} has the ranks {sorted(ranks)}", DAMAGED)


def check_alpha(file: Path, header: Header, where: str, name: str) -> None:
    """Raise `JobError` where the alpha a file has for a module is not one usable number."""
    try:
        value = read_number(file, header, name)
    except (OSError, ValueError) as error:
        raise JobError(f"{file}: the alpha of {where}: {error}", DAMAGED) from error
    checked_alpha(f"{file}: the alpha of {where}", value)


def checked_alpha(what: str, value: Any) -> float:
    """Return an alpha as it is; `JobError` where no update can be scaled by it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0.0 < value <= MAX_ALPHA:  # NaN is in no interval
        raise JobError(
            f"{what} is {quoted(value)}", f"it must be above 0 and {MAX_ALPHA:g} at most"
        )
    return float(value)
