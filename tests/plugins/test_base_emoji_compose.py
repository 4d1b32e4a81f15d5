"""The recipe's pictures and captions: what is said is what is drawn."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dreambooth.errors import RunError
from dreambooth_plugins.base_emoji import sprites as sprites_module
from dreambooth_plugins.base_emoji.compose import HELD_OUT, compose
from dreambooth_plugins.base_emoji.nouns import COLOURS, NOUNS, POSITIONS, SCENES, with_article
from dreambooth_plugins.base_emoji.sprites import VENDORS, VERSION, read_sprites

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth_plugins.base_emoji.compose import Composition
    from dreambooth_plugins.base_emoji.sprites import Sprite


def write_packages(folder: Path) -> None:
    """Write archives laid out like the npm packages: a disc of its own colour for every emoji."""
    codes = [code for group in NOUNS.values() for code in group]
    for shift, vendor in enumerate(VENDORS):
        entries = [
            {"unified": code, "image": f"{code.lower()}.png", "name": f"THING {i} FACE"}
            for i, code in enumerate(codes)
        ]
        with tarfile.open(folder / f"emoji-datasource-{vendor}-{VERSION}.tgz", "w:gz") as archive:
            add(archive, "package/emoji.json", json.dumps(entries).encode())
            for number, entry in enumerate(entries):
                picture = Image.new("RGBA", (64, 64))
                colour = (40 * number % 256, 90 * shift, 255 - 3 * number % 256, 255)
                ImageDraw.Draw(picture).ellipse((6, 6, 57, 57), fill=colour)
                data = io.BytesIO()
                picture.save(data, "PNG")
                add(archive, f"package/img/{vendor}/64/{entry['image']}", data.getvalue())


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> list[Sprite]:
    folder = tmp_path_factory.mktemp("npm")
    write_packages(folder)
    return read_sprites(folder)


@pytest.fixture(scope="module")
def items(sprites: list[Sprite]) -> list[Composition]:
    return [compose(sprites, 3, index) for index in range(600)]


def test_every_noun_has_a_drawing_of_each_vendor(sprites: list[Sprite]) -> None:
    assert {(s.noun, s.vendor) for s in sprites} == {(n, v) for n in NOUNS for v in VENDORS}
    assert {s.name for s in sprites if s.noun == "fox"} == {
        f"thing {[c for g in NOUNS.values() for c in g].index('1F98A')}"
    }


def test_missing_package_without_npm_says_which_file_to_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sprites_module.shutil, "which", lambda name: None)
    with pytest.raises(RunError) as caught:
        read_sprites(tmp_path)
    assert f"emoji-datasource-google-{VERSION}.tgz" in caught.value.hint


def test_composition_is_a_function_of_seed_and_index(sprites: list[Sprite]) -> None:
    first = [compose(sprites, 0, index) for index in (5, HELD_OUT + 5)]
    compose(sprites, 0, 77)
    again = [compose(sprites, 0, index) for index in (5, HELD_OUT + 5)]
    other = compose(sprites, 1, 5)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.pixels, b.pixels)
        assert (a.caption, a.facts) == (b.caption, b.facts)
    assert not np.array_equal(first[0].pixels, other.pixels)
    assert not np.array_equal(first[0].pixels, first[1].pixels)


def test_solid_backgrounds_have_the_colour_of_the_caption(items: list[Composition]) -> None:
    solid = [item for item in items if item.facts.background == "solid"]
    for item in solid:
        (name,) = item.facts.colours
        left, top, edge = item.facts.box
        outside = np.ones((64, 64), bool)
        outside[top : top + edge, left : left + edge] = False
        if not outside.any():
            continue
        seen = np.median(item.pixels[outside], axis=0)
        nearest = min(COLOURS, key=lambda n: np.square(seen - COLOURS[n]).sum())
        assert nearest == name
        said = [colour for colour in COLOURS if f" {colour} background" in item.caption]
        assert said in ([], [name])
    share = sum("background" in item.caption for item in solid) / len(solid)
    assert 0.75 < share < 0.95


def test_patterns_show_both_colours(items: list[Composition]) -> None:
    patterned = [item for item in items if len(item.facts.colours) == 2]
    assert {item.facts.background for item in patterned} == {"stripes", "dots", "checks"}
    for item in patterned:
        left, top, edge = item.facts.box
        outside = np.ones((64, 64), bool)
        outside[top : top + edge, left : left + edge] = False
        for name in item.facts.colours:
            near = np.abs(item.pixels[outside].astype(int) - COLOURS[name]).max(axis=1) <= 8
            assert near.any() or edge > 60


def test_scenes_are_named_by_their_words(items: list[Composition]) -> None:
    words = {word: scene for scene, group in SCENES.items() for word in group}
    seen = set()
    for item in items:
        for word, scene in words.items():
            if item.caption.endswith(word):
                assert item.facts.background == scene
                seen.add(scene)
    assert seen == set(SCENES)


def test_positions_and_sizes_are_where_the_words_say(items: list[Composition]) -> None:
    for item in items:
        left, top, edge = item.facts.box
        assert 0 <= left <= 64 - edge
        assert 0 <= top <= 64 - edge
        across, down = left + edge / 2 - 32, top + edge / 2 - 32
        offset = {"left": -across, "right": across, "top": -down, "bottom": down}
        if item.facts.position:
            assert POSITIONS[item.facts.position] in item.caption
            if item.facts.size != "big":
                assert offset[item.facts.position] > 8
        limits = {"small": (25, 32), "big": (58, 64), None: (32, 59)}[item.facts.size]
        assert limits[0] <= edge <= limits[1]
        for size in ("small", "big"):
            assert (f"a {size} " in item.caption) == (item.facts.size == size)


def test_captions_name_the_noun_and_often_use_the_right_article(items: list[Composition]) -> None:
    plain = [i for i in items if i.facts.noun in i.caption]
    assert len(plain) > 0.8 * len(items)
    vowels = [i for i in plain if i.facts.noun[0] in "aeiou" and i.facts.size is None]
    right = sum(f"an {i.facts.noun}" in i.caption for i in vowels) / len(vowels)
    assert 0.4 < right < 0.8
    assert with_article("octopus") == "an octopus"


def test_hue_turns_leave_grey_and_brightness_alone() -> None:
    from dreambooth_plugins.base_emoji.compose import _hue_matrix

    matrix = _hue_matrix(1 / 3)
    assert np.allclose(np.array([90.0, 90.0, 90.0]) @ matrix, 90, atol=1e-3)
    # A third of the circle takes red to green.
    assert np.allclose(np.array([1.0, 0, 0]) @ matrix, [0, 1, 0], atol=1e-5)
