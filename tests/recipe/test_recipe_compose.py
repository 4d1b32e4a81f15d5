"""The recipe's pictures and captions: what is said is what is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dreambooth.errors import RunError
from emoji_recipe import drawings as drawings_module
from emoji_recipe import grounds, textures
from emoji_recipe.compose import HELD_OUT, compose, compose_of
from emoji_recipe.drawings import SETS, VERSION, icon, read_drawings, subject
from emoji_recipe.nouns import (
    ALSO,
    COLOURS,
    EXCEPT,
    NOUNS,
    PATTERNS,
    POSITIONS,
    SCENES,
    SUBJECTS,
    SYNONYMS,
    with_article,
)

if TYPE_CHECKING:
    from pathlib import Path

    from emoji_recipe.compose import Composition
    from emoji_recipe.drawings import Drawing


@pytest.fixture(scope="module")
def drawings(npm: Path) -> tuple[Drawing, ...]:
    return read_drawings(npm)


@pytest.fixture(scope="module")
def items(drawings: tuple[Drawing, ...]) -> list[Composition]:
    return [compose(drawings, 3, index) for index in range(700)]


def outside(item: Composition) -> np.ndarray:
    """Return which pixels no drawing (nor its shadow) covers."""
    free = np.ones((128, 128), bool)
    for left, top, edge in item.facts.boxes:
        free[max(0, top - 14) : top + edge + 14, max(0, left - 14) : left + edge + 14] = False
    return free


def test_sixty_to_a_hundred_nouns_each_with_a_drawing_of_two_sets(
    drawings: tuple[Drawing, ...],
) -> None:
    assert 60 <= len(NOUNS) <= 100
    assert {d.noun for d in drawings} == set(NOUNS)
    assert {d.set for d in drawings if d.noun == "fox"} == set(list(SETS)[:2])
    assert SUBJECTS.keys() <= NOUNS.keys()
    assert SYNONYMS.keys() <= NOUNS.keys()
    names = {name for group in NOUNS.values() for name in group.split()}
    assert ALSO.keys() <= names


def test_an_alias_is_one_drawing_with_the_icon_it_names(drawings: tuple[Drawing, ...]) -> None:
    names = [(d.set, d.name) for d in drawings]
    assert len(names) == len(set(names))
    assert ("noto", "dog") in names
    assert ("noto", "dog-face") not in names
    assert not EXCEPT & set(names)


def test_names_are_listed_and_never_searched_for(drawings: tuple[Drawing, ...]) -> None:
    balloons = {d.name for d in drawings if d.noun == "balloon"}
    assert balloons == {"balloon"}
    assert "computer-mouse" not in NOUNS["mouse"].split()
    assert "teddy-bear" not in NOUNS["bear"].split()


def test_every_name_is_listed_under_one_noun() -> None:
    names = [name for group in NOUNS.values() for name in group.split()]
    assert len(names) == len(set(names))


def test_icon_keeps_the_box_of_its_set() -> None:
    values = {"icons": {"a": {"body": "<g/>", "left": -2, "width": 9}}, "aliases": {}, "height": 7}
    assert icon(values, "a") is not None
    assert 'viewBox="-2 0 9 7"' in icon(values, "a")[1]
    assert icon(values, "b") is None


def test_missing_package_without_npm_says_which_file_to_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawings_module.shutil, "which", lambda name: None)
    with pytest.raises(RunError) as caught:
        read_drawings(tmp_path)
    assert f"iconify-json-{VERSION}.tgz" in caught.value.hint


def test_composition_is_a_function_of_seed_and_index(drawings: tuple[Drawing, ...]) -> None:
    first = [compose(drawings, 0, index) for index in (5, HELD_OUT + 5)]
    compose(drawings, 0, 77)
    again = [compose(drawings, 0, index) for index in (5, HELD_OUT + 5)]
    other = compose(drawings, 1, 5)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.pixels, b.pixels)
        assert (a.caption, a.facts) == (b.caption, b.facts)
    assert not np.array_equal(first[0].pixels, other.pixels)
    assert not np.array_equal(first[0].pixels, first[1].pixels)
    assert compose_of(drawings, "cat", 0, 4).facts.nouns == ("cat",)


def test_plain_grounds_have_the_colour_of_the_caption(items: list[Composition]) -> None:
    plain = [i for i in items if i.facts.ground in {"solid", "textured"} and outside(i).sum() > 200]
    right = 0
    for item in plain:
        (name,) = item.facts.colours
        seen = np.median(item.pixels[outside(item)], axis=0)
        right += min(COLOURS, key=lambda n: np.square(seen - COLOURS[n]).sum()) == name
        said = [colour for colour in COLOURS if f" {colour} background" in item.caption]
        assert said in ([], [name])
    # Soft light darkens a corner: a few greys and oranges then lie nearer to another name.
    assert right / len(plain) > 0.93
    share = sum("background" in item.caption for item in plain) / len(plain)
    assert 0.8 < share < 0.96


@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns_show_both_colours(kind: str) -> None:
    made = grounds.draw(kind, ("red", "white"), np.random.default_rng(0))
    for name in ("red", "white"):
        near = np.abs(made - np.array(COLOURS[name])).max(axis=2) <= 8
        assert 0.1 < near.mean() < 0.9


@pytest.mark.parametrize("scene", SCENES)
def test_scenes_are_pictures_with_something_in_them(scene: str) -> None:
    made = grounds.draw(scene, (), np.random.default_rng(1))
    assert made.shape == (128, 128, 3)
    assert made.min() >= -1
    assert made.max() <= 256
    assert made.std() > 8


def test_scenes_are_named_by_their_words(items: list[Composition]) -> None:
    words = {word: scene for scene, group in SCENES.items() for word in group}
    seen = set()
    for item in items:
        said = item.caption.removesuffix(" in soft light")
        for word, scene in words.items():
            if said.endswith(word):
                assert item.facts.ground == scene
                seen.add(scene)
    assert seen == set(SCENES)


def test_positions_and_sizes_are_where_the_words_say(items: list[Composition]) -> None:
    for item in (i for i in items if len(i.facts.nouns) == 1):
        ((left, top, edge),) = item.facts.boxes
        assert 0 <= left <= 128 - edge
        assert 0 <= top <= 128 - edge
        across, down = left + edge / 2 - 64, top + edge / 2 - 64
        offset = {"left": -across, "right": across, "top": -down, "bottom": down}
        if item.facts.position:
            assert POSITIONS[item.facts.position] in item.caption
            if item.facts.size != "big":
                assert offset[item.facts.position] > 16
        limits = {"small": (46, 59), "big": (117, 128), None: (58, 116)}[item.facts.size]
        assert limits[0] <= edge <= limits[1]
        for size in ("small", "big"):
            assert (f" {size} " in f" {item.caption}") == (item.facts.size == size)


def test_two_things_stand_side_by_side_and_both_are_named(items: list[Composition]) -> None:
    pairs = [item for item in items if len(item.facts.nouns) == 2]
    assert 0.1 < len(pairs) / len(items) < 0.2
    for item in pairs:
        first, second = item.facts.boxes
        assert first[0] + first[2] <= second[0] + 4
        assert " and " in item.caption or " next to " in item.caption
        assert first[0] >= 0
        assert second[0] + second[2] <= 128
    both = [p for p in pairs if all(noun in p.caption for noun in p.facts.nouns)]
    assert len(both) > 0.8 * len(pairs)


def test_captions_name_the_noun_and_often_use_the_right_article(items: list[Composition]) -> None:
    single = [i for i in items if len(i.facts.nouns) == 1]
    plain = [i for i in single if i.facts.nouns[0] in i.caption]
    assert len(plain) > 0.85 * len(single)
    assert with_article("octopus") == "an octopus"
    assert with_article("grapes") == "grapes"


def test_painted_drawings_have_the_colour_that_is_said(drawings: tuple[Drawing, ...]) -> None:
    from emoji_recipe.compose import _changed, _painted

    for name in ("red", "blue", "green", "yellow", "purple"):
        made = _changed(drawings[0].picture, lambda rgb, a, name=name: _painted(rgb, a, name))
        pixels = np.asarray(made)
        solid = pixels[pixels[..., 3] == 255][:, :3].mean(axis=0)
        tone = np.array(COLOURS[name], float)
        assert np.corrcoef(solid, tone)[0, 1] > 0.95


def test_subjects_are_in_no_set_that_is_trained_on(npm: Path) -> None:
    assert subject(npm, "fox").size == (256, 256)
    assert drawings_module.SUBJECT_SET not in SETS


def test_dead_leaves_and_grain_are_functions_of_their_number() -> None:
    one, again, other = (textures.dead_leaves(0, i) for i in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.shape == (128, 128, 3)
    grain = textures.one_over_f(np.random.default_rng(0), 1.0)
    assert grain.std() == pytest.approx(1, abs=1e-4)
    power = np.abs(np.fft.rfft2(grain)) ** 2
    assert power[1:5, 1:5].mean() > 50 * power[40:60, 40:60].mean()


def test_hue_turns_leave_grey_and_brightness_alone() -> None:
    from emoji_recipe.compose import _hue_matrix

    matrix = _hue_matrix(1 / 3)
    assert np.allclose(np.array([90.0, 90.0, 90.0]) @ matrix, 90, atol=1e-3)
    # A third of the circle takes red to green.
    assert np.allclose(np.array([1.0, 0, 0]) @ matrix, [0, 1, 0], atol=1e-5)
