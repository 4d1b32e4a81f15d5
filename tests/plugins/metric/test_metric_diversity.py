from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from dreambooth.errors import RunError
from dreambooth.plugins import registry
from dreambooth_plugins.metric.diversity import Diversity


def noise(seed, size=(7, 5)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def score(samples):
    return Diversity().score(samples, [], None)


def test_black_and_white_are_one_apart():
    pair = [Image.new("RGB", (4, 4), c) for c in ("black", "white")]
    assert score({"a": pair}) == {"diversity": 1.0, "diversity/0": 1.0}


def test_a_collapsed_prompt_scores_exactly_zero():
    assert score({"a": [noise(1), noise(1), noise(1)]})["diversity"] == 0.0


def test_mean_over_pairs_follows_the_formula():
    pictures = [noise(k) for k in range(4)]
    flat = [[v / 255 for v in picture.tobytes()] for picture in pictures]
    total = 0.0
    for i in range(4):
        for j in range(i + 1, 4):
            squares = [(a - b) ** 2 for a, b in zip(flat[i], flat[j], strict=True)]
            total += math.sqrt(sum(squares) / len(squares))
    assert score({"a": pictures})["diversity/0"] == pytest.approx(total / 6, rel=1e-6)


def test_prompts_keep_their_index_and_singles_are_left_out():
    black, white = (Image.new("RGB", (4, 4), c) for c in ("black", "white"))
    scores = score({"a": [black, black], "b": [black], "c": [black, white]})
    assert scores == {"diversity": 0.5, "diversity/0": 0.0, "diversity/2": 1.0}


def test_nothing_to_compare_gives_no_score():
    assert score({"a": [noise(1)], "b": []}) == {}


def test_pictures_of_different_size_are_refused():
    with pytest.raises(RunError, match="differ in size"):
        score({"a": [noise(1), noise(2, (6, 5))]})


def test_diversity_is_registered():
    assert registry().kinds("metric")["diversity"] is Diversity
