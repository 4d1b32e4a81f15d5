"""Names the makers of a transformer give its modules, where several of diffusers' are one there.

A fused module (query, key and value in one) takes the adapters of its pieces as one of the sum of
their ranks, block-diagonal: each piece keeps its own rows, and nothing of it is lost or changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from dreambooth.interfaces import AdapterTensors

Rules: TypeAlias = "Mapping[str, str | tuple[str, ...]]"
"""Name in the file -> the module or modules of diffusers it is; `{i}` is a block's number."""


@dataclass(frozen=True)
class Place:
    """Where a module's rows lie in a module of a file."""

    module: str
    """Its name in the file, dotted."""
    piece: int = 0
    pieces: tuple[str, ...] = ()
    """All modules it is made of, by diffusers' names; empty where it is not fused."""
    swapped: bool = False
    """Whether the halves of its rows are the other way round (scale and shift)."""


def places(rules: Rules, modules: Iterable[str], swapped: Sequence[str] = ()) -> dict[str, Place]:
    """Return the place of each module by diffusers' name; those without a rule are left out.

    `swapped` names the modules of the file whose halves are the other way round.
    """
    known = set(modules)
    numbers = sorted({int(n) for name in known for n in re.findall(r"\.(\d+)\.", name)[:1]})
    found: dict[str, Place] = {}
    for there, here in rules.items():
        fused = (here,) if isinstance(here, str) else tuple(here)
        for i in numbers if "{i}" in there else [0]:
            pieces = tuple(name.format(i=i) for name in fused)
            name = there.format(i=i)
            for piece, module in enumerate(pieces):
                if module in known:
                    own = pieces if len(pieces) > 1 else ()
                    found[module] = Place(name, piece, own, name in swapped)
    return found


def fused(
    places: Mapping[str, Place],
    adapters: Iterable[AdapterTensors],
    rows: Mapping[str, int],
) -> dict[str, dict[str, Tensor]]:
    """Return name in the file -> role (`down`, `up`, `alpha`) -> tensor, of adapters of one part.

    `rows` are the outputs of every module, those without an adapter among them: their rows of a
    fused module stay zero.
    """
    import torch

    out: dict[str, dict[str, Tensor]] = {}
    groups: dict[str, list[AdapterTensors]] = {}
    for adapter in adapters:
        groups.setdefault(places[adapter.module].module, []).append(adapter)
    for name, group in groups.items():
        place = places[group[0].module]
        if not place.pieces:
            out[name] = _swapped(dict(group[0].tensors), place.swapped)
            continue
        own = {a.module: a.tensors for a in group}
        downs = [own[m]["down"] for m in place.pieces if m in own]
        total = sum(len(down) for down in downs)
        scales = {m: _scale(t) for m, t in own.items()}
        scale = max(sorted(scales.values()), key=list(scales.values()).count)
        up = downs[0].new_zeros(sum(rows[m] for m in place.pieces), total)
        row = column = 0
        for module in place.pieces:
            if module in own:
                piece = own[module]["up"] * (scales[module] / scale)
                rank = piece.shape[1]
                up[row : row + rows[module], column : column + rank] = piece
                column += rank
            row += rows[module]
        alpha = torch.tensor(scale * total)
        out[name] = {"down": torch.cat(downs), "up": up, "alpha": alpha}
    return out


def unfused(
    places: Mapping[str, Place], name: str, tensors: Mapping[str, Tensor], rows: Mapping[str, int]
) -> dict[str, dict[str, Tensor]]:
    """Return diffusers' module -> role -> tensor of a module of a file: the reverse of `fused`.

    Each piece has its own rows, and of the rank what reaches them: of a block-diagonal module that
    is the piece that was put in, and nothing of a layer that had no adapter. Shapes alone (on
    `meta`) tell neither; there each piece has the whole rank.
    """
    here = {module: place for module, place in places.items() if place.module == name}
    place = next(iter(here.values()))
    if not place.pieces:
        return {next(iter(here)): _swapped(dict(tensors), place.swapped)}
    out, row = {}, 0
    for module in place.pieces:
        own = {**tensors, "up": tensors["up"][row : row + rows[module]]}
        row += rows[module]
        if found := _reaching(own, tensors["up"]):
            out[module] = found
    return out


def _reaching(own: dict[str, Tensor], up: Tensor) -> dict[str, Tensor]:
    """Return a piece's factors without the ranks that are zero in its rows; empty where all are."""
    if up.is_meta or not up.any():
        return own
    kept = own["up"].flatten(1).any(0) if own["up"].ndim == 2 else None
    if kept is None or kept.all():
        return own
    if not kept.any():
        return {}
    share = float(kept.float().mean())
    alpha = {"alpha": own["alpha"] * share} if "alpha" in own else {}
    return {**own, "down": own["down"][kept], "up": own["up"][:, kept].contiguous(), **alpha}


def _scale(tensors: Mapping[str, Tensor]) -> float:
    rank = len(tensors["down"])
    return float(tensors["alpha"]) / rank if "alpha" in tensors else 1.0


def _swapped(tensors: dict[str, Tensor], swap: bool) -> dict[str, Tensor]:
    if not swap:
        return tensors
    import torch

    return {**tensors, "up": torch.cat(list(reversed(tensors["up"].chunk(2))))}
