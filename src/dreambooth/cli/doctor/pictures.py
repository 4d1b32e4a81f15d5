"""Remarks over single pictures: size, sharpness, shape, what the crop cuts, twins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dreambooth.cli.doctor.remarks import Remark
from dreambooth.helpers.alike import can_compare, near_duplicates

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth.interfaces import Item

TINY = 0.5
"""Below this share of the training size a picture is enlarged to more than twice its pixels."""
LONG_SIDE, TILES = 512, 8
"""Sharpness is looked at in 8 x 8 tiles of a picture brought to 512 pixels: one sharp place is
enough, so that a blurred background does not count."""
SOFT = 30.0
"""Variance of the Laplacian, in squared grey levels of 0..255, of the sharpest tiles. The 21
photographs of DreamBench at hand have more; blurred with a radius of 3 pixels at that size none."""
SHARPEST = 0.9
CUT = 0.25
"""Share of a picture that the centre crop may leave out."""
SHAPES = 1.5
"""How much wider or taller one picture may be than another."""


def sizes(items: Sequence[Item], size: tuple[int, int]) -> Iterator[Remark]:
    """Yield a remark over pictures that are enlarged."""
    scale = {i.id: min(i.size[0] / size[0], i.size[1] / size[1]) for i in items}
    tiny = [name for name, ratio in scale.items() if ratio < TINY]
    small = [name for name, ratio in scale.items() if TINY <= ratio < 1]
    wanted = f"{size[1]} x {size[0]}"
    for mark, names, how in (("problem", tiny, "far smaller"), ("look", small, "smaller")):
        if names:
            yield Remark(
                "problem" if mark == "problem" else "look",
                "tiny",
                f"{how} than the {wanted} they are trained at, so they are enlarged",
                tuple(names),
                "take larger ones, or lower data.resolution",
            )


def softness(image: Image) -> float:
    """Return how sharp the sharpest tiles of a picture are: a variance of its Laplacian.

    The 90th percentile over tiles; in squared grey levels (0..255).
    """
    import numpy as np

    grey = image.convert("L")
    scale = LONG_SIDE / max(grey.size)
    if scale < 1:  # never enlarged: that would make every small picture soft
        grey = grey.resize((max(8, round(grey.width * scale)), max(8, round(grey.height * scale))))
    a = np.asarray(grey, dtype=np.float32)
    laplacian = a[:-2, 1:-1] + a[2:, 1:-1] + a[1:-1, :-2] + a[1:-1, 2:] - 4 * a[1:-1, 1:-1]
    tiles = [
        tile.var()
        for band in np.array_split(laplacian, TILES, axis=0)
        for tile in np.array_split(band, TILES, axis=1)
        if tile.size
    ]
    return float(np.quantile(tiles, SHARPEST)) if tiles else 0.0


def soft(images: Sequence[tuple[str, Image]]) -> Iterator[Remark]:
    """Yield a remark over pictures without any sharp place."""
    names = tuple(name for name, image in images if softness(image) < SOFT)
    if names:
        yield Remark(
            "look", "soft", "soft: no place in them is sharp", names,
            "take sharper ones if the subject itself is blurred",
        )  # fmt: skip


def twins(items: Sequence[Item], images: Sequence[tuple[str, Image]]) -> Iterator[Remark]:
    """Yield remarks over equal files and over pictures that are almost the same."""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(item.sha256, []).append(item.id)
    same = [names for names in groups.values() if len(names) > 1]
    for names in same:
        yield Remark(
            "problem", "duplicate", f"the same file {len(names)} times, so it counts that often",
            tuple(names), "keep one of them", aside=tuple(names[1:]),
        )  # fmt: skip
    if not can_compare():
        return
    for names in alike(images):
        if any(set(names) <= set(group) for group in same):
            continue
        yield Remark(
            "look", "alike", "almost the same picture, or its mirror image", tuple(names),
            "five different views teach more than ten alike",
        )  # fmt: skip


def alike(images: Sequence[tuple[str, Image]]) -> list[list[str]]:
    """Return groups of pictures that are almost the same, one by way of another."""
    group = list(range(len(images)))
    for i, j, _, _ in near_duplicates([image for _, image in images]):
        old, new = group[j], group[i]
        group = [new if g == old else g for g in group]
    found = [[images[i][0] for i, g in enumerate(group) if g == k] for k in sorted(set(group))]
    return [names for names in found if len(names) > 1]


def shapes(items: Sequence[Item], size: tuple[int, int]) -> Iterator[Remark]:
    """Yield remarks over what the crop leaves out, and over pictures of mixed shapes."""
    wanted = size[1] / size[0]
    ratio = {item.id: item.size[1] / item.size[0] for item in items}
    lost = {name: 1 - min(r / wanted, wanted / r) for name, r in ratio.items()}
    names = tuple(name for name, share in lost.items() if share > CUT)
    if names:
        most = max(lost[name] for name in names)
        yield Remark(
            "look", "cut", f"the crop leaves out up to {most:.0%} of them", names,
            "look at the sheet of crops; cut them yourself where the subject is lost",
        )  # fmt: skip
    if ratio and max(ratio.values()) / min(ratio.values()) > SHAPES:
        yield Remark(
            "look",
            "shapes",
            "pictures of mixed shapes, wide and tall: all are cut to one",
            (),
            "",
        )


def suffixes(items: Sequence[Item]) -> Iterator[Remark]:
    """Yield a remark over files that are named as another format than they are."""
    from PIL import Image as Pillow

    known = Pillow.registered_extensions()
    wrong = []
    for item in items:
        if item.path is None:
            continue
        try:
            with Pillow.open(item.path) as image:
                kind = image.format or ""
        except OSError:
            continue
        named = known.get(item.path.suffix.lower())
        same = {"MPO": "JPEG", "APNG": "PNG"}
        if same.get(named or "", named) != same.get(kind, kind):
            wrong.append(f"{item.id} (is {kind})")
    if wrong:
        yield Remark(
            "look", "suffix", "named as another kind of file than they are; they are read all the "
            "same", tuple(wrong), "other tools may refuse them: rename them",
        )  # fmt: skip


def crops_sheet(crops: Sequence[tuple[str, Image]]) -> Image:
    """Return a contact sheet of the crops as trained, six a row, their names above."""
    from dreambooth.helpers.sheets import Row, contact_sheet

    columns = min(6, len(crops))
    rows = [
        Row(", ".join(name for name, _ in some), [image for _, image in some])
        for some in (crops[i : i + columns] for i in range(0, len(crops), columns))
    ]
    return contact_sheet([""] * columns, rows, title="your pictures, cut as they are trained")
