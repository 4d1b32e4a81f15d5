"""Decoding hostile bytes, and resizing, over many inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data_images import encoded, noise, smooth

from dreambooth_plugins.data import images
from dreambooth_plugins.data.images import ImageRejected, cover, decode, resize

_JPEG = encoded(Image.fromarray(smooth(40, 56)), "JPEG", quality=85)
_PNG = encoded(Image.fromarray(noise(24, 24, 4)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    base=st.sampled_from([_JPEG, _PNG]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.floats(0, 1),
)
def test_mutated_files_decode_or_are_rejected(
    base: bytes, edits: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(base)
    for where, value in edits:
        data[int(where * (len(data) - 1))] = value
    if cut < 0.5:
        data = data[: int(len(data) * (0.3 + cut))]
    try:
        image = decode(bytes(data))
    except ImageRejected:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= images.MAX_PIXELS


@given(st.binary(max_size=64))
def test_any_bytes_decode_or_are_rejected(data: bytes) -> None:
    with pytest.raises(ImageRejected):
        decode(data)


sides = st.integers(8, 3000)


@given(sides, sides, sides, sides)
def test_cover_fits_one_side_and_keeps_the_aspect(h: int, w: int, th: int, tw: int) -> None:
    got_h, got_w = cover((h, w), (th, tw))
    assert got_h >= th
    assert got_w >= tw
    assert got_h == th or got_w == tw
    scale = max(th / h, tw / w)
    assert abs(got_h - h * scale) <= 0.5 + 1e-6 or got_h == th
    assert abs(got_w - w * scale) <= 0.5 + 1e-6 or got_w == tw


def lanczos(values: np.ndarray, size: int) -> np.ndarray:
    """Resample the first axis with a Lanczos-3 kernel widened for shrinking (float64)."""
    scale = len(values) / size
    support = 3.0 * max(scale, 1.0)
    out = np.empty((size, *values.shape[1:]))
    for i in range(size):
        centre = (i + 0.5) * scale
        low, high = (
            max(0, int(centre - support + 0.5)),
            min(len(values), int(centre + support + 0.5)),
        )
        x = (np.arange(low, high) + 0.5 - centre) / max(scale, 1.0)
        weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
        out[i] = np.tensordot(weights / weights.sum(), values[low:high], axes=1)
    return out


@pytest.mark.parametrize("size", [(16, 20), (50, 64)])
def test_resize_is_antialiased_lanczos(size: tuple[int, int]) -> None:
    values = noise(40, 56, 3).astype(float)
    wide = np.clip(lanczos(values.swapaxes(0, 1), size[1]).swapaxes(0, 1).round(), 0, 255)
    expected = np.clip(lanczos(wide, size[0]), 0, 255)
    got = np.asarray(resize(Image.fromarray(values.astype(np.uint8)), size))
    assert got.shape[:2] == size
    assert np.abs(got - expected).max() <= 1.01
