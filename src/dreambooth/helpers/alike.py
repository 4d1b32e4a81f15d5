"""Near-duplicate pictures: perceptual hashes, and their distances.

pHash and dHash of 64 bits (imagehash); pictures whose hashes differ in at most 6 bits are taken
for near-duplicates where both say so, since either alone finds flat pictures alike. A mirrored
picture counts too.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image

BITS = 6


def can_compare() -> bool:
    """Say whether imagehash is installed (extra `judge`)."""
    return find_spec("imagehash") is not None


def near_duplicates(
    images: Sequence[Image], bits: int = BITS
) -> Iterator[tuple[int, int, int, bool]]:
    """Yield (i, j, bits apart, mirrored) of pictures that are almost the same, i < j."""
    from PIL import ImageOps

    plain = [_hashes(image) for image in images]
    mirrored = [_hashes(ImageOps.mirror(image)) for image in images]
    for j in range(len(images)):
        for i in range(j):
            for other, is_mirrored in ((plain[j], False), (mirrored[j], True)):
                apart = max(int(a - b) for a, b in zip(plain[i], other, strict=True))
                if apart <= bits:
                    yield i, j, apart, is_mirrored
                    break


def _hashes(image: Image) -> tuple[Any, Any]:
    import imagehash

    grey = image.convert("L")
    return imagehash.phash(grey), imagehash.dhash(grey)
