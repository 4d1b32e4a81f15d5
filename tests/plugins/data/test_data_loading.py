"""Loading: pixels and geometry of crops and flips against an independent computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data_folder import RNG, Ctx, picture, save, scan

from dreambooth.errors import RunError
from dreambooth_plugins.data.folder import Folder


def independent(values: np.ndarray, size: tuple[int, int], at: tuple[int, int]) -> np.ndarray:
    """Resize by exact side arithmetic and cut with numpy."""
    height, width = values.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    whole = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    image = Image.fromarray(values).resize(whole[::-1], Image.Resampling.LANCZOS)
    return np.asarray(image)[at[0] : at[0] + size[0], at[1] : at[1] + size[1]]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(8, 48), st.integers(8, 48))
def test_centre_crop_pixels_and_geometry(tmp_path: Path, h: int, w: int, th: int, tw: int) -> None:
    save(tmp_path / "a.png", h * w, h, w)
    source = Folder(path=tmp_path, resolution=(th, tw), flip=True)
    (item,) = source.scan(Ctx()).items
    plain, mirrored = (source.load(item, v, RNG(v)) for v in (0, 1))
    assert plain.geometry.original_size == mirrored.geometry.original_size == (h, w)
    assert plain.geometry.target_size == (th, tw)
    top, left = plain.geometry.crop_top_left
    expected = independent(picture(h * w, h, w), (th, tw), (top, left))
    assert plain.pixels.dtype == np.uint8
    assert plain.pixels.flags.writeable
    assert (plain.pixels == expected).all()
    # the crop is central to within half a pixel, on both sides
    scale = max(th / h, tw / w)
    for first, side, size in ((top, th, h), (left, tw, w)):
        assert abs(first - (max(side, round(size * scale)) - side) / 2) <= 0.5
    # the mirrored crop, cut out of the mirrored resized picture at the corner it names
    assert (mirrored.pixels == plain.pixels[:, ::-1]).all()
    flipped = picture(h * w, h, w)[:, ::-1]
    cut = independent(flipped, (th, tw), mirrored.geometry.crop_top_left)
    assert np.abs(mirrored.pixels.astype(int) - cut).max() <= 1  # the filter rounds the other way


def test_variants(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (item,) = scan(tmp_path)[0].items
    assert Folder(path=tmp_path).variants(item) == 1
    assert Folder(path=tmp_path, flip=True).variants(item) == 2
    assert Folder(path=tmp_path, crop="random", flip=True).variants(item) is None
    with pytest.raises(ValueError, match="variant 2"):
        Folder(path=tmp_path).load(item, 2, RNG(0))


def test_a_variant_does_not_depend_on_the_draw(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (item,) = scan(tmp_path)[0].items
    for crop in ("center", "random"):
        source = Folder(path=tmp_path, resolution=16, crop=crop, flip=True)
        for variant in (0, 1):
            a, b = (source.load(item, variant, RNG(seed)) for seed in (1, 2))
            assert (a.pixels == b.pixels).all()
            assert a.geometry == b.geometry


def test_random_crops_are_a_function_of_the_draw_and_reach_every_place(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 5, 16, 20)
    (item,) = scan(tmp_path)[0].items
    source = Folder(path=tmp_path, resolution=16, crop="random", flip=True)
    lefts: dict[bool, set[int]] = {False: set(), True: set()}
    values = picture(5, 16, 20)
    for seed in range(120):
        sample = source.load(item, None, RNG(seed))
        assert (sample.pixels == source.load(item, None, RNG(seed)).pixels).all()
        left = sample.geometry.crop_top_left[1]
        straight = (sample.pixels == values[:, left : left + 16]).all()
        mirror = (sample.pixels == values[:, ::-1][:, left : left + 16]).all()
        assert straight != mirror
        lefts[bool(mirror)].add(left)
    assert lefts == {False: set(range(5)), True: set(range(5))}


def test_flip_without_a_variant_is_drawn(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (item,) = scan(tmp_path)[0].items
    plain = Folder(path=tmp_path, resolution=16)
    mirrored = Folder(path=tmp_path, resolution=16, flip=True)
    whole = plain.load(item, 0, RNG(0)).pixels
    drawn = [mirrored.load(item, None, RNG(s)).pixels for s in range(20)]
    assert 0 < sum((d == whole).all() for d in drawn) < 20
    assert all((plain.load(item, None, RNG(s)).pixels == whole).all() for s in range(20))


def test_a_picture_that_changed_or_went_stops_the_run(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    source = Folder(path=tmp_path, resolution=16)
    (item,) = source.scan(Ctx()).items
    save(path, 9)
    with pytest.raises(RunError, match=r"a\.png has changed"):
        source.load(item, 0, RNG(0))
    path.unlink()
    with pytest.raises(RunError, match=r"a\.png can no longer be read"):
        source.load(item, 0, RNG(0))


def test_pixels_key_holds_pixels_only(tmp_path: Path) -> None:
    base = Folder(path=tmp_path, resolution=64).pixels_key()
    same = Folder(path=tmp_path / "b", resolution=(64, 64), prompt="x", caption_dropout=0.1,
                  captions="none", broken="refuse", recursive=True)  # fmt: skip
    assert same.pixels_key() == base
    for other in ({"resolution": 32}, {"crop": "random"}, {"flip": True}):
        assert Folder(path=tmp_path, **{"resolution": 64, **other}).pixels_key() != base
